"""The stand-ins take what real tools send, keep it, and stop when they are told to."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path

import pytest
from phoi_edge_node.errors import EdgeError
from phoi_edge_node.stand_ins.fhir import environment
from phoi_edge_node.stand_ins.program import STOP_S, listening
from pydicom import dcmread
from support.real_ct import lidc_idri_0001


def test_archive_takes_what_dcmtk_stores(tmp_path: Path) -> None:
    source = sorted(lidc_idri_0001().rglob("*.dcm"))[:3]
    with listening("phoi_edge_node.stand_ins.archive", tmp_path) as port:
        subprocess.run(["/usr/bin/echoscu", "127.0.0.1", str(port)], check=True, timeout=30)
        for _ in range(2):
            subprocess.run(
                ["/usr/bin/storescu", "127.0.0.1", str(port), *map(str, source)],
                check=True,
                timeout=60,
            )
    stored = {path.stem: dcmread(path) for path in tmp_path.glob("*.dcm")}
    assert len(stored) == 3
    for path in source:
        sent = dcmread(path)
        assert stored[sent.SOPInstanceUID].PixelData == sent.PixelData


@pytest.mark.parametrize("name", ["archive", "mllp"])
def test_nothing_listens_after_the_end(tmp_path: Path, name: str) -> None:
    with listening(f"phoi_edge_node.stand_ins.{name}", tmp_path) as port:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        begun = time.monotonic()
    assert time.monotonic() - begun < STOP_S
    assert (tmp_path / "stand-in.log").read_text() == ""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_a_port_that_is_taken_is_said_plainly(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(EdgeError, match=r"stand-in\.log says why"),
            listening("phoi_edge_node.stand_ins.mllp", tmp_path, port),
        ):
            pass


def test_packages_that_cannot_be_installed_are_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(EdgeError, match="cannot be installed"):
        environment(tmp_path, "none", ["./no-such-package.whl"])
    # What failed is made anew the next time.
    assert not (tmp_path / "environments" / "none" / "ready").exists()
