"""Orthanc, a PACS that nobody of Phoi wrote, as a process of its own on free ports."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from phoi_edge_node.stand_ins.program import free_port, process

PLUGINS = Path("/usr/share/orthanc/plugins")
DICOM_WEB = PLUGINS / "libOrthancDicomWeb.so"
WORKLISTS = PLUGINS / "libModalityWorklists.so"


@dataclass(frozen=True)
class Orthanc:
    """A running Orthanc. Its AE title is ORTHANC; every calling AE title may do everything."""

    http: httpx.Client
    http_port: int
    dicom_port: int

    def upload(self, path: Path) -> None:
        """Store one DICOM file in it."""
        self.http.post("/instances", content=path.read_bytes()).raise_for_status()

    def resources(self, level: str) -> list[str]:
        """Orthanc's own identifiers of all ``studies``, ``series`` or ``instances``."""
        found: list[str] = self.http.get(f"/{level}").raise_for_status().json()
        return found


def client_of(http_port: int) -> httpx.Client:
    """One that takes a connection for each request: Orthanc closes idle ones after a second."""
    return httpx.Client(
        base_url=f"http://127.0.0.1:{http_port}",
        trust_env=False,
        timeout=120,
        limits=httpx.Limits(max_keepalive_connections=0),
    )


@contextmanager
def orthanc(
    folder: Path, *, plugins: tuple[Path, ...] = (), **configuration: Any
) -> Iterator[Orthanc]:
    """Orthanc with its storage in ``folder``, found again if there is one; stopped at the end.

    Args:
        configuration: sections of its configuration file, besides or in place of those made here.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings: Mapping[str, Any] = {
        "Name": "ORTHANC",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "HttpPort": free_port(),
        "DicomPort": free_port(),
        "DicomAet": "ORTHANC",
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DefaultEncoding": "Utf8",
        "DicomAlwaysAllowFind": True,
        "DicomAlwaysAllowGet": True,
        "DicomAlwaysAllowMove": True,
        "DicomAlwaysAllowFindWorklist": True,
        "StableAge": 1,
        "Plugins": [str(plugin) for plugin in plugins],
        **configuration,
    }
    file = folder / "orthanc.json"
    file.write_text(json.dumps(settings), encoding="utf-8")
    log = (folder / "orthanc.log").open("ab")
    with (
        log,
        process(
            ["/usr/sbin/Orthanc", str(file)],
            log.fileno(),
            subprocess.DEVNULL,
            {"TCP_NODELAY": "1"},  # DCMTK's: else every C-STORE waits for a delayed acknowledgement
        ),
        client_of(settings["HttpPort"]) as client,
    ):
        _wait_until_it_answers(client, folder / "orthanc.log")
        yield Orthanc(client, settings["HttpPort"], settings["DicomPort"])


def _wait_until_it_answers(client: httpx.Client, log: Path, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            if client.get("/system").is_success:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError(f"Orthanc does not answer: {log.read_text(errors='replace')[-2000:]}")
