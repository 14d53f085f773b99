"""What stands around one edge node, and notes all that comes."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import httpx
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.dimse_primitives import C_STORE
from support.dicom_peers import VERIFICATION
from support.emr import running_fhir_server
from support.mllp_peers import acknowledging, control_id, mllp_peer

ARCHIVE, EMR = "pacs", "emr-hl7"


@dataclass(frozen=True)
class Receipt:
    """A document that came.

    Attributes:
        identity: SOP Instance UID, or MSH-10.
        digest: SHA-256 of its bytes.
    """

    destination: str
    identity: str
    digest: str


@dataclass(frozen=True)
class FhirHoldings:
    """What the FHIR server holds of one patient.

    Attributes:
        reports: ids of the DiagnosticReports.
        statuses: of the first report, through its history.
        observations: identifiers of the Observations.
    """

    reports: Sequence[str]
    statuses: Sequence[str]
    observations: Sequence[str]


@dataclass
class Outside:
    """An archive, an MLLP receiver and a FHIR server, which run on while edges die.

    Attributes:
        receipts: what archive and receiver got, in order.
    """

    archive_port: int = 0
    mllp_port: int = 0
    fhir: str = ""
    receipts: list[Receipt] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, destination: str, identity: str, content: bytes) -> None:
        """Something came."""
        receipt = Receipt(destination, identity, hashlib.sha256(content).hexdigest())
        with self._lock:
            self.receipts.append(receipt)

    def fhir_holds(self, study_instance_uid: str) -> FhirHoldings:
        """Of the patient of a study; a patient has one study here."""
        named = f"urn:dicom:uid|urn:oid:{study_instance_uid}"
        (study,) = self._search("ImagingStudy", {"identifier": named})
        subject = {"subject": study["subject"]["reference"]}
        reports = [report["id"] for report in self._search("DiagnosticReport", subject)]
        history = self._get(f"DiagnosticReport/{reports[0]}/_history", {})["entry"]
        return FhirHoldings(
            reports=reports,
            statuses=[entry["resource"]["status"] for entry in reversed(history)],
            observations=[
                identifier["value"]
                for observation in self._search("Observation", subject)
                for identifier in observation["identifier"]
            ],
        )

    def _search(self, kind: str, parameters: Mapping[str, str]) -> list[Any]:
        found = self._get(kind, {"_count": "200", **parameters})
        return [entry["resource"] for entry in found.get("entry", ())]

    def _get(self, path: str, parameters: Mapping[str, str]) -> Any:
        answer = httpx.get(f"{self.fhir}/{path}", params=parameters, timeout=30, trust_env=False)
        answer.raise_for_status()
        return answer.json()


@contextmanager
def outside(folder: Path) -> Iterator[Outside]:
    """Run all of it until the end of the context."""
    here = Outside()

    def acknowledge(connection: socket.socket, stopped: threading.Event) -> None:
        acknowledging("AA|{id}")(_Noting(connection, here), stopped)  # type: ignore[arg-type]

    with (
        _archive(here) as here.archive_port,
        mllp_peer(acknowledge) as here.mllp_port,
        running_fhir_server(folder) as here.fhir,
    ):
        yield here


class _Noting:
    """A connection whose message is noted once it is whole, before it is acknowledged."""

    def __init__(self, connection: socket.socket, here: Outside) -> None:
        self._connection = connection
        self._here = here
        self._received = b""

    def recv(self, size: int) -> bytes:
        data = self._connection.recv(size)
        if not data:
            raise ConnectionError("the edge hung up in the middle of a message")
        self._received += data
        return data

    def sendall(self, answer: bytes) -> None:
        message = self._received.split(b"\x1c\r")[0].removeprefix(b"\x0b")
        self._here.note(EMR, control_id(message), message)
        self._connection.sendall(answer)


@contextmanager
def _archive(here: Outside) -> Iterator[int]:
    """A storage SCP that takes everything."""

    def store(event: evt.Event) -> int:
        request = cast("C_STORE", event.request)
        content = event.encoded_dataset(include_meta=False)
        here.note(ARCHIVE, str(request.AffectedSOPInstanceUID), content)
        return 0x0000

    entity = AE(ae_title="ARCHIVE")
    entity.supported_contexts = AllStoragePresentationContexts
    entity.add_supported_context(VERIFICATION)
    server = entity.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, store)]
    )
    assert server is not None
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
