"""The main job from outside: a PACS that sends until it is told success, a person who signs."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
from phoi_edge_node.accounts import Account, Role, hash_password
from phoi_edge_node.bootstrap import open_storage
from phoi_edge_node.errors import EdgeError
from phoi_edge_node.settings import read_settings
from phoi_edge_node.store import StoredAccount
from phoi_edge_node.system import SystemClock
from pydicom import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.association import Association
from sqlalchemy.exc import OperationalError
from support.chests import plain_chest
from support.dicom_phantom import SeriesOptions, make_series
from support.outside import Page

from kill.site import Site

SUCCESS = 0x0000
USERNAME, PASSWORD = "bs.an", "một mật khẩu dài"
NODULES = (((-70.0, 0.0, 0.0), 20.0), ((70.0, 20.0, 32.0), 16.0))
logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)  # it reports every death at length
_BEFORE_NEXT_TRY_S = 0.05
_AT_REST = """
SELECT (SELECT count(*) FROM instances) = ?
   AND (SELECT count(*) FROM studies WHERE state = 'complete') = 1
   AND NOT EXISTS (SELECT 1 FROM analyses WHERE state IN ('queued', 'running'))
   AND NOT EXISTS (SELECT 1 FROM deliveries WHERE state IN ('pending', 'sending'))
"""


@dataclass(frozen=True)
class Study:
    """Two series of one patient, and a slice that comes late.

    Attributes:
        sent: data sets by SOP Instance UID: all of them.
    """

    study_instance_uid: str
    series: tuple[Sequence[Dataset], Sequence[Dataset]]
    late: Sequence[Dataset]
    sent: dict[str, Dataset] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for dataset in (*self.series[0], *self.series[1], *self.late):
            self.sent[dataset.SOPInstanceUID] = dataset


def make_study(seed: str) -> Study:
    """A small phantom; each seed is another patient."""
    fine = SeriesOptions(seed=seed, patient_id=seed)
    coarse = SeriesOptions(seed=seed, patient_id=seed, series=2, kernel="LUNG")
    slices = make_series(plain_chest(NODULES, spacing_mm=(5.0, 3.0, 3.0)), fine)
    thick = make_series(plain_chest(NODULES, spacing_mm=(20.0, 3.0, 3.0)), coarse)
    return Study(fine.study_instance_uid, (slices, thick[:-1]), thick[-1:])


def main_job(site: Site, study: Study) -> None:
    """Send, wait for the result, send what is late, wait for the new result, review and sign."""
    site.up()
    _send_side_by_side(site, study.series)
    _wait_for_rest(site, len(study.sent) - len(study.late))
    _send_side_by_side(site, [study.late])
    _wait_for_rest(site, len(study.sent))
    _add_person(site)
    _review(site, study.study_instance_uid)
    _wait_for_rest(site, len(study.sent))


def _send_side_by_side(site: Site, series: Sequence[Sequence[Dataset]]) -> None:
    """Each by an association of its own, as long as it takes."""
    given_up = threading.Event()
    with ThreadPoolExecutor() as pool:
        senders = [pool.submit(_send, site.dicom_port, one, given_up) for one in series]
        try:
            site.wait_for("success for all", lambda: all(sender.done() for sender in senders))
        finally:
            given_up.set()
    for sender in senders:
        sender.result()


def _send(port: int, datasets: Sequence[Dataset], given_up: threading.Event) -> None:
    """As a PACS does: what was not answered with success is sent again."""
    entity = AE(ae_title="CT1")
    entity.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    waiting = list(datasets)
    while waiting and not given_up.wait(_BEFORE_NEXT_TRY_S):
        association = entity.associate(
            "127.0.0.1", port, ae_title="PHOI", evt_handlers=[(evt.EVT_CONN_OPEN, _at_once)]
        )
        while waiting and association.is_established and _stored(association, waiting[0]):
            waiting.pop(0)
        if association.is_established:
            association.release()


def _at_once(event: evt.Event) -> None:
    """Without TCP_NODELAY every instance would wait 40 ms for an acknowledgement."""
    connection: Any = event.assoc.dul.socket
    connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _stored(association: Association, dataset: Dataset) -> bool:
    try:
        status = association.send_c_store(dataset)
    except RuntimeError:  # the association ended a moment ago
        return False
    return "Status" in status and status.Status == SUCCESS


def _wait_for_rest(site: Site, instances: int) -> None:
    """Everything that was sent is indexed, and nothing is left to do."""

    def at_rest() -> bool:
        return site.rows(_AT_REST, instances) == [(1,)]

    site.wait_for("rest", at_rest)


def _add_person(site: Site) -> None:
    """As `phoi edge account add` does, beside the running node; again where there was no room."""

    def added() -> bool:
        with suppress(OperationalError, EdgeError):
            _put_account(site)
        return bool(site.rows("SELECT 1 FROM accounts"))

    site.wait_for("account", added)


def _put_account(site: Site) -> None:
    storage = open_storage(read_settings(site.settings_file), SystemClock())
    account = Account(USERNAME, "Bs. Trần Văn An", Role.REVIEWER)
    storage.store.put_account(StoredAccount(account, hash_password(PASSWORD)))
    storage.engine.dispose()


def _review(site: Site, study_instance_uid: str) -> None:
    """A person accepts every mark and signs; where the page went away, they look and go on."""

    def signed() -> bool:
        if site.rows("SELECT 1 FROM reviews WHERE state = 'signed'"):
            return True
        with suppress(httpx.TransportError, AssertionError), Page(site, USERNAME, PASSWORD) as page:
            _go_on_reviewing(site, page, study_instance_uid)
        return False

    site.wait_for("signed review", signed)


def _go_on_reviewing(site: Site, page: Page, study_instance_uid: str) -> None:
    ((analysis, revision),) = site.rows(
        "SELECT id, revision FROM analyses WHERE state = 'succeeded'"
    )
    marks = page.tracking_uids(study_instance_uid, revision)
    rows = site.rows("SELECT disposition FROM dispositions WHERE analysis_id = ?", analysis)
    decided = {json.loads(disposition)["tracking_uid"] for (disposition,) in rows}
    for mark in marks:
        if mark not in decided:
            page.decide(study_instance_uid, mark, "accepted")
    page.sign(study_instance_uid, judgements_seen=len(marks), revision=revision)
