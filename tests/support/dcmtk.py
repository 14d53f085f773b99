"""DCMTK and GDCM, the independent tools on the other side of an association.

By full path: pip's pynetdicom installs programs of the same names.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from phoi_edge_node.dicom.storage_scu import Peer
from phoi_edge_node.stand_ins.program import free_port
from pydicom.uid import (
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)


def run(
    tool: str, *arguments: object, environment: Mapping[str, str] = os.environ
) -> subprocess.CompletedProcess[str]:
    """Run a tool of /usr/bin to its end; its exit status is the caller's to judge."""
    return subprocess.run(
        [f"/usr/bin/{tool}", *map(str, arguments)],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60,
        check=False,
        env=environment,
    )


def convert(tool: str, source: Path, target: Path, *options: str) -> None:
    """Write ``target`` from ``source`` with dcmcjpeg, dcmcjpls, dcmcrle, dcmconv or gdcmconv."""
    done = run(tool, *options, source, target)
    assert done.returncode == 0, done.stderr


@dataclass(frozen=True)
class StoreScp:
    """A running storescp.

    Attributes:
        folder: where it writes what it receives.
    """

    peer: Peer
    folder: Path


@contextmanager
def storescp(folder: Path, *options: str, ae_title: str = "ARCHIVE") -> Iterator[StoreScp]:
    """DCMTK's storescp on a free port, stopped at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = ["/usr/bin/storescp", "-aet", ae_title, "-od", str(folder), "+xa", *options]
    with subprocess.Popen(
        [*command, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            wait_until_listening(port)
            yield StoreScp(Peer(ae_title, "127.0.0.1", port, timeout_s=5), folder)
        finally:
            process.terminate()


# What to tell storescu so that it sends a file as it is encoded.
_PROPOSE = {
    ExplicitVRLittleEndian: "-xe",
    ImplicitVRLittleEndian: "-xi",
    ExplicitVRBigEndian: "-xb",
    DeflatedExplicitVRLittleEndian: "-xd",
    JPEGLosslessSV1: "-xs",
    JPEGLSLossless: "-xt",
    JPEGLSNearLossless: "-xu",
    JPEG2000: "-xw",
    JPEGExtended12Bit: "-xx",
    JPEG2000Lossless: "-xv",
    RLELossless: "-xr",
}


def storescu(
    port: int,
    *paths: Path,
    transfer_syntax: str = ExplicitVRLittleEndian,
    called: str = "PHOI",
    calling: str = "CT1",
    environment: Mapping[str, str] = os.environ,
) -> subprocess.CompletedProcess[str]:
    """Send files, or folders of them, of one transfer syntax with DCMTK's storescu."""
    options = ["-v", "-nh", "-R", "+sd", _PROPOSE[UID(transfer_syntax)]]
    return run(
        "storescu",
        *options,
        *("-aet", calling, "-aec", called, "127.0.0.1", port),
        *paths,
        environment=environment,
    )


def wait_until_listening(port: int, timeout_s: float = 10) -> None:
    """Until something answers on a port of this machine."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return
