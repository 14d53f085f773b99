"""Networks in 8-bit integers: what a bundle says of them, and when a worker takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from phoi_inference.engine import Engine
from phoi_models.bundle import Bundle, Form, form_file, sign_bundle
from phoi_models.bundle_store import BundleStore
from phoi_models.errors import BadBundle
from phoi_models.findings import Region
from phoi_models.sessions import (
    FormChoice,
    Provider,
    SessionSettings,
    chosen_form,
    has_int8_instructions,
)
from phoi_models.signing import TrustStore
from support.bundles import write_bundle
from support.chests import plain_chest
from support.inference import QUICK

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
TRUST = TrustStore.of([KEY.public_key()])
MEASURED = {"cpm": 0.845, "fp32_cpm": 0.85, "scans": 12, "nodules": 120}
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
BOTH = {Form.FLOAT32: b"", Form.INT8: b""}


def signed(folder: Path, **changes: Any) -> Path:
    sign_bundle(write_bundle(folder, **changes), KEY)
    return folder


def test_the_file_of_a_form_says_which_it_is() -> None:
    assert form_file("models/model.onnx", Form.FLOAT32) == "models/model.onnx"
    assert form_file("models/model.onnx", Form.INT8) == "models/model.int8.onnx"


def test_a_bundle_gives_each_network_in_each_form(tmp_path: Path) -> None:
    bundle = Bundle.load(signed(tmp_path / "bundle", int8=MEASURED), TRUST)
    assert bundle.onnx.keys() == {Form.FLOAT32, Form.INT8}
    assert bundle.second_look is None
    assert bundle.parameters.int8 is not None
    assert bundle.parameters.int8.nodules == 120


def test_the_8_bit_file_is_signed_like_any_other(tmp_path: Path) -> None:
    plain = Bundle.load(signed(tmp_path / "plain"), TRUST)
    both = Bundle.load(signed(tmp_path / "both", int8=MEASURED), TRUST)
    assert both.manifest.files.keys() - plain.manifest.files.keys() == {"models/model.int8.onnx"}
    assert both.bundle_hash != plain.bundle_hash


def test_a_form_that_is_promised_must_be_there(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "bundle", int8=MEASURED)
    (folder / "models/model.int8.onnx").unlink()
    sign_bundle(folder, KEY)
    with pytest.raises(BadBundle, match=r"disagree on models/model\.int8\.onnx"):
        Bundle.load(folder, TRUST)


def test_a_form_of_which_nothing_was_measured_is_refused(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "bundle")
    (folder / "models/model.int8.onnx").write_bytes(b"network")
    sign_bundle(folder, KEY)
    with pytest.raises(BadBundle, match=r"disagree on models/model\.int8\.onnx"):
        Bundle.load(folder, TRUST)


def test_a_form_that_finds_too_little_is_refused(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "bundle", int8={**MEASURED, "cpm": 0.839})
    with pytest.raises(BadBundle, match=r"CPM 0\.839, 0\.850 in float32"):
        sign_bundle(folder, KEY)


@pytest.mark.parametrize(
    ("choice", "forms", "provider", "cpu", "chosen"),
    [
        (FormChoice.AUTO, BOTH, CPU, "fast", Form.INT8),
        (FormChoice.AUTO, BOTH, "OpenVINOExecutionProvider", "fast", Form.INT8),
        (FormChoice.AUTO, BOTH, CPU, "slow", Form.FLOAT32),
        (FormChoice.AUTO, BOTH, CUDA, "fast", Form.FLOAT32),
        (FormChoice.AUTO, {Form.FLOAT32: b""}, CPU, "fast", Form.FLOAT32),
        (FormChoice.FP32, BOTH, CPU, "fast", Form.FLOAT32),
        (FormChoice.INT8, BOTH, CPU, "slow", Form.INT8),
    ],
)
def test_the_form_that_runs(
    choice: FormChoice, forms: dict[Form, bytes], provider: str, cpu: str, chosen: Form
) -> None:
    assert chosen_form(choice, forms, provider, fast_int8=cpu == "fast") is chosen


def test_a_form_that_is_asked_for_and_missing_is_told() -> None:
    with pytest.raises(BadBundle, match="--form auto"):
        chosen_form(FormChoice.INT8, {Form.FLOAT32: b""}, CPU, fast_int8=True)


@pytest.mark.parametrize(
    "flags", ["flags : fpu avx512_vnni", "flags : fpu avx_vnni", "Features : fp asimd asimddp"]
)
def test_8_bit_instructions_are_seen(tmp_path: Path, flags: str) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor : 0\n{flags} last\n")
    assert has_int8_instructions(cpuinfo) is True


def test_a_cpu_without_8_bit_instructions_is_seen(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor : 0\nflags : fpu avx2 avx512f\n")
    assert has_int8_instructions(cpuinfo) is False


def test_where_nothing_is_known_of_the_cpu_float32_runs(tmp_path: Path) -> None:
    assert has_int8_instructions(tmp_path / "absent") is False


@pytest.mark.parametrize("form", Form)
def test_a_result_says_in_which_form_it_was_found(tmp_path: Path, form: Form) -> None:
    TRUST.save(tmp_path / "trust.json")
    store = BundleStore(tmp_path / "store")
    bundle = signed(tmp_path / "bundle", int8=MEASURED, **QUICK)
    identity = store.install(bundle, TRUST).identity()
    settings = SessionSettings(Provider.CPU, threads=1, form=FormChoice(form))
    engine = Engine(store, tmp_path / "trust.json", settings)
    engine.load(identity)
    assert [model.provider for model in engine.models()] == [f"CPUExecutionProvider {form}"]
    result = engine.analyze(
        identity, plain_chest(), Region.LUNGS, lambda _step, _fraction: None, lambda: False
    )
    assert result.runtime == f"CPUExecutionProvider {form}"
