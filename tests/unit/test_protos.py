"""The committed gRPC code is what the .proto file generates."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_generated_code_is_that_of_the_proto(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, ROOT / "scripts/generate-protos", tmp_path],
        check=True,
        capture_output=True,
    )

    generated = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*.py*")}
    committed = {
        p.relative_to(ROOT / "protos"): p.read_bytes()
        for p in (ROOT / "protos").rglob("*_pb2*.py*")
        if "__pycache__" not in p.parts
    }

    assert len(generated) == 4
    assert committed == generated, "run scripts/generate-protos and commit what it writes"
