# `make demo` and `make test` set up all they need. `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
ARGS ?=
WORKERS ?= 2
KILLS ?= 1000
SOAK ?= .cache/soak.jsonl
CT ?=
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := true

.PHONY: help demo test interop check lint types imports unit bench soak protos clean

help:  ## what there is to make
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

demo: $(VENV)/.demo  ## the whole way of one real chest CT; ARGS=--once ends by itself
	@$(BIN)/phoi demo $(ARGS)

test: tools check  ## everything: lint, types, import contracts, all tests
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile tests/contract tests/integration $(ARGS)
	$(BIN)/python -m pytest tests/acceptance $(ARGS)

interop: tools $(VENV)/.dev  ## OHIF, Medplum and other programs by others; CT=DIR checks a CT of your own
	@scripts/install-interop-tools
	PHOI_INTEROP_CT="$(CT)" $(BIN)/python -m pytest tests/interop $(ARGS)

check: lint types imports unit  ## the everyday part

lint: $(VENV)/.dev  ## format and lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.dev  ## mypy strict
	$(BIN)/mypy

imports: $(VENV)/.dev  ## who may import whom
	$(BIN)/lint-imports

unit: $(VENV)/.dev  ## pure code
	$(BIN)/python -m pytest -n auto --dist worksteal tests/unit $(ARGS)

bench: $(VENV)/.dev  ## measure; writes benchmarks/results.json
	$(BIN)/python -m benchmarks $(ARGS)

soak: $(VENV)/.dev  ## kill edge and worker KILLS times, and look what is lost; goes on where it ended
	PYTHONPATH=tests $(BIN)/python -m kill.soak --kills $(KILLS) --results $(SOAK) $(ARGS)

protos: $(VENV)/.dev  ## regenerate the gRPC code
	$(BIN)/python scripts/generate-protos

.PHONY: tools
tools:
	@scripts/install-tools

NO_INSTALL = { echo "The installation failed: its last lines above say why. Usual causes: no network, or less than 4 GB of free disk here. Run make again once that is mended." >&2; exit 1; }

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Phoi needs Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Making the virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	    echo "No virtual environment could be made: apt-get install python3-venv" >&2; exit 1; }

$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing Phoi, MLflow and what the demo needs (about 1 GB, some minutes the first time)"
	@$(PIP) install -c constraints.txt -e '.[demo]' || $(NO_INSTALL)
	@touch $@

# torch comes first and alone: any looser request pulls gigabytes of CUDA packages. torchvision is
# only for importing MONAI's detectors, which need its Python code and not its dependencies.
$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing Phoi and everything its tests need (some minutes the first time)"
	@$(PIP) install torch==2.13.0 || $(NO_INSTALL)
	@$(PIP) install --no-deps torchvision==0.28.0 || $(NO_INSTALL)
	@$(PIP) install -c constraints.txt -e '.[dev]' || $(NO_INSTALL)
	@touch $@ $(VENV)/.demo

clean:  ## forget the virtual environment and all caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
