"""The EMR of the tests: servers and validators that were not written here."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from hl7apy.consts import VALIDATION_LEVEL
from hl7apy.core import Message
from hl7apy.exceptions import HL7apyException
from hl7apy.parser import parse_message
from phoi_edge_node.sample import default_cache
from phoi_edge_node.stand_ins.fhir import environment, fhir_server
from phoi_edge_node.stand_ins.program import free_port

VALIDATORS = ["fhirkit-rs==0.1.0", "pyrofile-validator==0.3.0", "fhir.resources==8.3.0"]

# pyrofile 0.3.0 takes its value sets from the examples in fhir.resources' field definitions, which
# end in "+" where the set goes on. All these codes are in the R4 value sets observation-status,
# diagnostic-report-status and task-status.
PYROFILE_IS_WRONG = (
    ("Observation.status", "corrected"),
    ("Observation.status", "entered-in-error"),
    ("DiagnosticReport.status", "corrected"),
    ("DiagnosticReport.status", "entered-in-error"),
    ("Task.status", "completed"),
    ("Task.status", "cancelled"),
)

# hl7apy warns of values that are not in the tables that 2.5.1 prints. Table 0396 (coding systems)
# is open: it names 99zzz as local, HL7nnnn as tables, and HL7 has registered SCT and UCUM since.
# Table 0125 prints CWE from 2.6 on; data type CWE itself is of 2.5. Table 0211 had no
# UTF-8 in 2.3.1.
HL7APY_WARNS = re.compile(
    r"Warning: Value (99PHOI|SCT|UCUM|HL70357|HL70485) not in table HL70396 in element \S+"
    r"|Warning: Value CWE not in table HL70125 in element OBX\.OBX_2"
    r"|Warning: Value (UNICODE )?UTF-8 not in table HL70211 in element MSH\.MSH_18"
)


@contextmanager
def running_fhir_server(folder: Path) -> Iterator[str]:
    """sekmet-fhir; yields its base URL."""
    with fhir_server(default_cache(), folder, free_port()) as base_url:
        yield base_url


def hl7_faults(message: bytes) -> list[str]:
    """What hl7apy, strict, finds wrong: errors, and warnings that are not pinned above."""
    return hl7_checked(message)[1]


def hl7_checked(message: bytes) -> tuple[Message | None, list[str]]:
    """A message as hl7apy parses it, strict, and its faults."""
    with tempfile.NamedTemporaryFile() as report:
        try:
            parsed = parse_message(
                message.decode("utf-8"), validation_level=VALIDATION_LEVEL.STRICT
            )
            parsed.validate(report_file=report.name)
        except HL7apyException as error:
            return None, [f"{type(error).__name__}: {error}"]
        found = Path(report.name).read_text(encoding="utf-8").splitlines()
    return parsed, [line for line in found if not HL7APY_WARNS.fullmatch(line)]


def fhir_faults(bundles: Mapping[str, bytes]) -> list[str]:
    """What fhirkit-rs and pyrofile find wrong; warnings count."""
    with _written(bundles) as folder:
        return [*_fhirkit(folder), *_pyrofile(folder)]


def fhirkit_faults(bundles: Mapping[str, bytes]) -> list[str]:
    """What the faster of the two finds wrong."""
    with _written(bundles) as folder:
        return _fhirkit(folder)


@contextmanager
def _written(bundles: Mapping[str, bytes]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "bundles"
        folder.mkdir()
        for name, content in bundles.items():
            (folder / f"{name}.json").write_bytes(content)
        yield folder


@cache
def _tools() -> Path:
    python = environment(default_cache(), "fhir-validators-1", VALIDATORS)
    return python.parent


def _fhirkit(folder: Path) -> list[str]:
    files = sorted(str(path) for path in folder.iterdir())
    done = subprocess.run(
        [_tools() / "fhirkit", "validate", *files], capture_output=True, text=True, check=False
    )
    lines = done.stdout.splitlines()
    assert sum(line.endswith(": ok") or "issue(s)" in line for line in lines) == len(files)
    return [f"fhirkit: {line}" for line in lines if not line.endswith(": ok")]


def _pyrofile(folder: Path) -> list[str]:
    report = folder.parent / "report.json"
    subprocess.run(
        [_tools() / "pyrofile", "folder", str(folder), "--json-output", str(report)],
        capture_output=True,
        cwd=folder.parent,
        check=False,  # it ends with 1 for the findings that are pinned above
    )
    issues = json.loads(report.read_text(encoding="utf-8"))["issues"]
    return [
        f"pyrofile: {issue['severity']} {issue['path']}: {issue['message']}"
        for issue in issues
        if not _known_false(issue["path"], issue["message"])
    ]


def _known_false(path: str, message: str) -> bool:
    return any(
        path == where and message.startswith(f"Code '{code}' is not in required ValueSet _r4b_")
        for where, code in PYROFILE_IS_WRONG
    )
