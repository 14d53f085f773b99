"""What somebody outside Phoi can do and see: send images, look into archive, EMR and metrics."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import httpx
from phoi_edge_node.stand_ins.hospital import Hospital
from pydicom import Dataset

from support import dcmtk

SR = "1.2.840.10008.5.1.4.1.1.88.34"
SEG = "1.2.840.10008.5.1.4.1.1.66.4"
SECONDARY_CAPTURES = {
    "1.2.840.10008.5.1.4.1.1.7",
    "1.2.840.10008.5.1.4.1.1.7.2",
    "1.2.840.10008.5.1.4.1.1.7.4",
}
KEY_OBJECTS = "1.2.840.10008.5.1.4.1.1.88.59"
LANES = ("pacs", "emr-hl7", "emr-fhir")
PATIENCE_S = 150.0
_T = TypeVar("_T")


@dataclass(frozen=True)
class Arrived:
    """Everything that the hospital's systems hold of one study."""

    reports: tuple[Dataset, ...]
    segmentations: tuple[Dataset, ...]
    captures: tuple[Dataset, ...]
    key_objects: tuple[Dataset, ...]
    messages: tuple[str, ...]
    diagnostic_reports: tuple[Mapping[str, Any], ...]
    observations: tuple[Mapping[str, Any], ...]

    @property
    def counts(self) -> dict[str, int]:
        return {
            "SR": len(self.reports),
            "SEG": len(self.segmentations),
            "SC": len(self.captures) > 0,
            "KOS": len(self.key_objects),
            "ORU": len(self.messages),
            "FHIR": len(self.diagnostic_reports),
        }


def send(site: Hospital, folder: Path, *, calling: str = "SCANNER", called: str = "PHOI") -> bool:
    """Send a folder with DCMTK's storescu; did all of it succeed?"""
    return send_files(site, sorted(folder.rglob("*.dcm")), calling=calling, called=called)


def send_files(
    site: Hospital, files: Sequence[Path], *, calling: str = "SCANNER", called: str = "PHOI"
) -> bool:
    done = dcmtk.run(
        "storescu",
        *("-aet", calling, "-aec", called, "-xs", "127.0.0.1", site.ports.dicom),
        *files,
        environment={"TCP_NODELAY": "1", "PATH": "/usr/bin"},
    )
    return done.returncode == 0


def arrived(site: Hospital, study_instance_uid: str) -> Arrived:
    """What came of a study, from the archive's files, the receiver's messages, the FHIR server."""
    datasets = [d for d in site.archived().values() if d.StudyInstanceUID == study_instance_uid]
    studies = {
        f"ImagingStudy/{study['id']}"
        for study in site.fhir_resources("ImagingStudy")
        if study_instance_uid in str(study["identifier"])
    }
    reports = [
        report
        for report in site.fhir_resources("DiagnosticReport")
        if studies & {study["reference"] for study in report["imagingStudy"]}
    ]
    named = {ref["reference"] for r in reports for ref in r.get("result", ())}
    return Arrived(
        reports=tuple(d for d in datasets if d.SOPClassUID == SR),
        segmentations=tuple(d for d in datasets if d.SOPClassUID == SEG),
        captures=tuple(d for d in datasets if d.SOPClassUID in SECONDARY_CAPTURES),
        key_objects=tuple(d for d in datasets if d.SOPClassUID == KEY_OBJECTS),
        messages=tuple(m for m in site.messages() if study_instance_uid in m),
        diagnostic_reports=tuple(reports),
        observations=tuple(
            o for o in site.fhir_resources("Observation") if f"Observation/{o['id']}" in named
        ),
    )


def wait_for(what: str, look: Callable[[], _T | None], patience_s: float = PATIENCE_S) -> _T:
    """The first thing that ``look`` returns that is not None or False."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        seen = look()
        if seen is not None and seen is not False:
            return seen
        time.sleep(0.2)
    raise AssertionError(f"after {patience_s:.0f} s still no {what}")


def wait_for_result(site: Hospital, study_instance_uid: str, *, with_seg: bool = True) -> Arrived:
    """Wait until one of each kind has arrived; ``with_seg``: those of nodules too."""

    def look() -> Arrived | None:
        found = arrived(site, study_instance_uid)
        enough = found.reports and found.captures and found.messages and found.diagnostic_reports
        of_nodules = found.segmentations and found.key_objects
        return found if enough and (of_nodules or not with_seg) else None

    return wait_for("result in archive, HL7 and FHIR", look)


def metric(site: Hospital, name: str, **labels: str) -> float:
    """A value from the edge's Prometheus page; 0 where it is not there."""
    text = httpx.get(f"{site.page}metrics/", trust_env=False, timeout=60).text
    for line in text.splitlines():
        if line.startswith(name) and all(f'{k}="{v}"' in line for k, v in labels.items()):
            return float(line.rsplit(" ", 1)[1])
    return 0.0


def settle(site: Hospital, seconds: float = 4.0) -> None:
    """Let time pass in which something more might wrongly happen, then until nothing waits."""
    time.sleep(seconds)
    wait_for("rest", lambda: _rests(site))


def _rests(site: Hospital) -> bool:
    unfinished = [
        metric(site, "phoi_studies", state="receiving"),
        *(metric(site, "phoi_analyses", state=state) for state in ("queued", "running")),
        *(
            metric(site, "phoi_deliveries", to=lane, state=state)
            for lane in LANES
            for state in ("pending", "sending")
        ),
    ]
    return not any(unfinished)


class Served(Protocol):
    """Whatever serves the page."""

    @property
    def page(self) -> str:
        """URL of the worklist."""
        ...


class Page:
    """The review page, used over HTTP by a signed-in person, through its own forms."""

    def __init__(self, site: Served, username: str, password: str) -> None:
        self._http = httpx.Client(
            base_url=site.page, trust_env=False, follow_redirects=True, timeout=60
        )
        try:
            self._sign_in({"username": username, "password": password})
        except BaseException:
            self._http.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def _sign_in(self, form: dict[str, str]) -> None:
        answer = self._http.post("/login", data=form | self._csrf("/login"))
        assert answer.status_code == httpx.codes.OK, answer.status_code
        assert answer.url.path != "/login", "not signed in"

    def get(self, path: str) -> str:
        answer = self._http.get(path)
        assert answer.status_code == httpx.codes.OK, (path, answer.status_code)
        assert path == "/login" or answer.url.path != "/login", "signed out"
        return answer.text

    def ask(self, path: str) -> int:
        """Ask for a page that need not be there; the status of the answer."""
        return self._http.get(path).status_code

    def tracking_uids(self, study_instance_uid: str, revision: int = 1) -> list[str]:
        viewer = f"/studies/{study_instance_uid}/revisions/{revision}/viewer.json"
        return [nodule["tracking_uid"] for nodule in json.loads(self.get(viewer))["nodules"]]

    def decide(self, study_instance_uid: str, tracking_uid: str, verdict: str) -> None:
        form = {"tracking_uid": tracking_uid, "verdict": verdict}
        if verdict == "rejected":
            form["reason"] = "vessel"
        self._post(study_instance_uid, "decisions", form)

    def sign(self, study_instance_uid: str, judgements_seen: int, revision: int = 1) -> None:
        form = {"revision": str(revision), "judgements_seen": str(judgements_seen)}
        self._post(study_instance_uid, "sign", form)

    def _post(self, study_instance_uid: str, what: str, form: dict[str, str]) -> None:
        path = f"/studies/{study_instance_uid}"
        answer = self._http.post(f"{path}/{what}", data=form | self._csrf(path))
        assert answer.status_code == httpx.codes.OK, (what, answer.status_code)

    def _csrf(self, path: str) -> dict[str, str]:
        found = re.search(r'name="csrf"[^>]*value="([^"]+)"', self.get(path))
        assert found, "the page has no form"
        return {"csrf": found.group(1)}
