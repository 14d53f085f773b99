"""What must hold of one study, however often what handled it was killed."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pydicom import dcmread

from kill.emr import ARCHIVE, EMR
from kill.job import Study
from kill.site import Site

FHIR = "emr-fhir"
_DESTINATIONS = (ARCHIVE, EMR, FHIR)
_CURRENT = ("final", "corrected")
_DELIVERIES = """
SELECT destination, identity, deliveries.state,
       documents.status IN ('final', 'corrected') AND analyses.state = 'succeeded'
  FROM deliveries
  JOIN documents ON documents.id = document_id
  JOIN analyses ON analyses.id = analysis_id
"""


def losses(site: Site, study: Study) -> list[str]:
    """Everything that is not as it must be; nothing of the site may run any more."""
    return [
        *site.losses,
        *_instances(site, study),
        *_revisions(site),
        *_deliveries(site),
        *_order_of_arrival(site),
        *_fhir(site, study),
        *_review(site),
        *_leftovers(site),
    ]


def _instances(site: Site, study: Study) -> Iterator[str]:
    """Each is indexed, and its file holds exactly what was sent."""
    rows = site.rows("SELECT sop_instance_uid, path, sha256, size FROM instances")
    if {uid for uid, *_ in rows} != set(study.sent):
        yield "the index does not hold the instances that were sent"
    for uid, path, sha256, size in rows:
        if not (site.instances / path).is_file():
            yield f"the file of instance {uid} is gone"
        elif not _as_indexed(site.instances / path, sha256, size):
            yield f"the file of instance {uid} is not what the index says"
        elif dcmread(site.instances / path) != study.sent[uid]:
            yield f"the file of instance {uid} is not what was sent"
    files = list((site.instances / "studies").rglob("*.dcm"))
    if len(files) != len(rows):
        yield f"{len(files)} files for {len(rows)} instances"


def _as_indexed(path: Path, sha256: str, size: int) -> bool:
    content = path.read_bytes()
    # PS3.10 7.1: the first element of the file meta information is the length of the rest of it.
    data_set = 144 + int.from_bytes(content[140:144], "little")
    return len(content) == size and hashlib.sha256(content[data_set:]).hexdigest() == sha256


def _revisions(site: Site) -> Iterator[str]:
    """One current revision, made by the model that it was pinned to."""
    rows = site.rows("SELECT state, model, result FROM analyses ORDER BY revision")
    states = [state for state, *_ in rows]
    if Counter(states) != Counter(superseded=len(states) - 1, succeeded=1):
        yield f"analyses ended as {states}"
    for state, model, result in rows:
        if state == "succeeded":
            made_by = json.loads(result)["identity"]["model"]
            if made_by != json.loads(model):
                yield "the result was made by another model than was pinned"


def _deliveries(site: Site) -> Iterator[str]:
    """Whatever counts as delivered came, once by identity; all of the current report did."""
    came = {(receipt.destination, receipt.identity) for receipt in site.around.receipts}
    bytes_of = Counter(r.identity for r in set(site.around.receipts))
    yield from (f"{identity} came as {n} things" for identity, n in bytes_of.items() if n > 1)
    for row in site.rows(_DELIVERIES):
        destination, identity, state, current = row
        if destination != FHIR and state == "delivered" and (destination, identity) not in came:
            yield f"{identity} did not come to {destination}"
        if state not in {"delivered", "superseded"} or (current and state != "delivered"):
            yield f"a document of the EMR or archive is {state}: {row}"
    if len({destination for destination, *_ in site.rows(_DELIVERIES)}) != len(_DESTINATIONS):
        yield "a destination was forgotten"


def _order_of_arrival(site: Site) -> Iterator[str]:
    """Nothing that was replaced arrives after what replaces it."""
    documents = site.rows("SELECT identity, revision, status FROM documents")
    rank = {i: (revision, status in _CURRENT) for i, revision, status in documents}
    latest = dict.fromkeys(_DESTINATIONS, (0, False))
    for receipt in site.around.receipts:
        if receipt.identity in rank:
            if rank[receipt.identity] < latest[receipt.destination]:
                yield f"{receipt.identity} came to {receipt.destination} after its successor"
            latest[receipt.destination] = rank[receipt.identity]


def _fhir(site: Site, study: Study) -> Iterator[str]:
    """One report, never preliminary after final; every observation there once."""
    holds = site.around.fhir_holds(study.study_instance_uid)
    if len(holds.reports) != 1:
        yield f"the FHIR server holds {len(holds.reports)} reports"
    if holds.statuses != sorted(holds.statuses, key=_CURRENT.__contains__):
        yield f"the FHIR report went through {holds.statuses}"
    if holds.statuses[-1:] != ["final"]:
        yield "the FHIR report is not final"
    if len(holds.observations) != len(set(holds.observations)):
        yield "the FHIR server holds an observation twice"


def _review(site: Site) -> Iterator[str]:
    """Signed once; one judgement for each nodule; each of them audited once."""
    states = [state for (state,) in site.rows("SELECT state FROM reviews")]
    if Counter(states)["signed"] != 1 or "open" in states:
        yield f"reviews ended as {states}"
    results = site.rows("SELECT result FROM analyses WHERE state = 'succeeded'")
    nodules = [nodule for (result,) in results for nodule in json.loads(result)["nodules"]]
    marks = sorted(nodule["tracking_uid"] for nodule in nodules)
    rows = site.rows("SELECT disposition FROM dispositions")
    judged = sorted(json.loads(disposition)["tracking_uid"] for (disposition,) in rows)
    if marks != judged or not marks:
        yield f"{len(marks)} marks, {len(judged)} judgements"
    audited = Counter(action for (action,) in site.rows("SELECT action FROM audit"))
    if (audited["decide"], audited["sign"]) != (len(marks), 1):
        yield f"the audit has {audited['decide']} judgements and {audited['sign']} signatures"


def _leftovers(site: Site) -> Iterator[str]:
    """No half file, nothing set aside, no voxels left for a worker."""
    for folder in (
        site.instances / "incoming",
        site.instances / "quarantine",
        site.volumes,
    ):
        left = [path.name for path in folder.rglob("*") if path.is_file()]
        if left:
            yield f"{len(left)} files are left in {folder.name}"
