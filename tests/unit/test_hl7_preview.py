"""``phoi hl7 preview``: the message of a past study, of nobody unless asked."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import hl7
import pytest
from hypothesis import given
from hypothesis import strategies as st
from phoi_edge_node.cli.hl7 import app
from phoi_edge_node.hl7v2.mapping import parse_mapping
from phoi_edge_node.hl7v2.oru_r01 import OruEncoder
from phoi_edge_node.hl7v2.readable import FIELD_NAMES
from phoi_edge_node.orders import PatientKey
from phoi_edge_node.past_case import hidden
from phoi_edge_node.ports import Delivered, Document, DocumentKind, ReportStatus
from phoi_edge_node.recalled import RecallCriteria, RecallRequest
from phoi_edge_node.result import Correction, Outcome, Priority, SignedReview, Verdict
from phoi_edge_node.settings import Hl7Settings, SiteSettings
from phoi_edge_node.sql.engine import open_engine
from phoi_edge_node.sql.sql_store import SqlStore
from phoi_edge_node.store import Outgoing
from phoi_edge_node.study import AnalysisEvent
from phoi_edge_node.testing import FakeClock
from support import values
from support.cases import (
    NAME,
    ORDER,
    PATIENT,
    PHOI_VERSION,
    SIGNED_AT,
    STUDY,
    STUDY_UID,
    CountingUids,
    case,
    result,
)
from support.hl7_mappings import PAGE
from typer.testing import CliRunner, Result

SECRETS = ("Nguy", "Tuy", "BN-000123", "1968", "ACC2026", "Trần", "Lê", "Ho ra", "P\\T\\1", "Hòa")


class Site:
    """A node's folder with one study that has a result."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.write_settings()
        self._engine = open_engine(f"sqlite:///{folder / 'phoi.sqlite'}")
        self.store = SqlStore(self._engine, FakeClock())
        self.store.add_instance(replace(values.instance(1, STUDY_UID), study=STUDY))
        found = self.store.complete_study(STUDY_UID, Priority.ROUTINE)
        assert found is not None
        self.analysis_id = found

    def write_settings(self, hl7: str = '[hl7]\nhost = "127.0.0.1"\nport = 1\n') -> None:
        self.settings = self.folder / "edge.toml"
        self.settings.write_text(f'data = "{self.folder}"\nsite.name = "bvdk"\n{hl7}')

    def analyse(self, outgoing: Sequence[Outgoing] = ()) -> None:
        assert self.store.claim_analysis() is not None
        told = result(Outcome.POSITIVE)
        self.store.finish_analysis(self.analysis_id, AnalysisEvent.FINISH, told, outgoing)

    def sign(self) -> None:
        for nodule in result(Outcome.POSITIVE).nodules:
            self.store.decide(
                self.analysis_id, nodule.tracking_uid, Verdict.REJECTED, "hoa", "", Correction()
            )
        current = tuple(self.store.review(self.analysis_id).current.values())
        signed = SignedReview("hoa", "BS. Lê Thị Hòa", SIGNED_AT, current)
        self.store.sign(self.analysis_id, signed, [])

    def dump(self) -> list[str]:
        """All that the database holds."""
        with closing(sqlite3.connect(self.folder / "phoi.sqlite")) as database:
            return list(database.iterdump())

    def preview(self, *options: object, uid: str = STUDY_UID) -> Result:
        arguments = ["preview", uid, "-s", str(self.settings), *map(str, options)]
        return CliRunner().invoke(app, arguments)


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> list[Site]:
    """Not analysed, analysed, signed."""
    made = [Site(tmp_path_factory.mktemp("site")) for _ in range(3)]
    for site in made[1:]:
        site.analyse()
    made[2].sign()
    return made


@pytest.fixture
def analysed(sites: list[Site]) -> Site:
    sites[1].write_settings()
    return sites[1]


def raw(told: Result) -> hl7.Message:
    assert told.exit_code == 0, told.output
    return hl7.parse(told.output.strip().replace("\n", "\r"))


def test_hides_the_patient_unless_asked(analysed: Site) -> None:
    told = analysed.preview()
    assert told.exit_code == 0
    assert not [secret for secret in SECRETS if secret in told.output]
    assert "PID-5 Patient Name" in told.output
    assert "Xxxxxx^Xxx Xxx Xxxxx" in told.output
    shown = analysed.preview("--show-patient").output
    assert NAME in shown
    assert PATIENT.patient_id in shown


def test_the_page_shows_what_it_prints(analysed: Site) -> None:
    (shown,) = re.findall(r"```text\n(PID\n.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert shown in analysed.preview().output


def test_every_field_that_phoi_writes_has_its_name(analysed: Site) -> None:
    for line in analysed.preview("--status", "final").output.splitlines():
        if line.startswith("  "):
            place, title = line.split(maxsplit=1)
            name, _, number = place.partition("-")
            assert title.startswith(FIELD_NAMES[name][int(number)])


@pytest.mark.parametrize(
    ("status", "letter"),
    [("preliminary", "P"), ("final", "F"), ("corrected", "C"), ("withdrawn", "C")],
)
def test_as_if_it_were(analysed: Site, status: str, letter: str) -> None:
    message = raw(analysed.preview("--raw", "--status", status))
    assert str(message.segment("OBR")[25]) == letter


def test_as_it_stands(sites: list[Site]) -> None:
    _, analysed, signed = sites
    assert str(raw(analysed.preview("--raw")).segment("OBR")[25]) == "P"
    message = raw(signed.preview("--raw"))
    assert str(message.segment("OBR")[25]) == "F"
    assert "negative" in str(message)  # the signature rejects every nodule
    assert "Hòa" not in str(message)


def test_what_was_withdrawn_stands_as_withdrawn(tmp_path: Path) -> None:
    site = Site(tmp_path)
    sent = Document(DocumentKind.HL7_ORU, "PHOI1", b"MSH|")
    site.analyse([Outgoing(sent, ("emr-hl7",))])
    claimed = site.store.claim_delivery("emr-hl7")
    assert claimed is not None
    site.store.settle_delivery(claimed[0].id, Delivered(), SIGNED_AT)
    site.store.ask_recall(
        RecallRequest(RecallCriteria(since=datetime(2000, 1, 1, tzinfo=UTC)), "bad", "it")
    )
    message = raw(site.preview("--raw"))
    assert str(message.segment("OBR")[25]) == "C"
    assert "ĐÃ THU HỒI" in str(message)
    (tmp_path / "mapping.toml").write_text("preliminary = false")
    told = site.preview("--raw", "--mapping", tmp_path / "mapping.toml")
    assert "ĐÃ THU HỒI" in told.output  # it was told, so that it is withdrawn


def test_what_nobody_was_told_needs_no_withdrawal(analysed: Site) -> None:
    mapping = analysed.folder / "mapping.toml"
    mapping.write_text("preliminary = false")
    told = analysed.preview("--status", "withdrawn", "--mapping", mapping)
    assert "no message" in told.output


def test_a_mapping_to_try(analysed: Site) -> None:
    mapping = analysed.folder / "mapping.toml"
    mapping.write_text('[constants]\n"MSH-3" = "OURS"\n')
    message = raw(analysed.preview("--raw", "--mapping", mapping))
    assert str(message.segment("MSH")[3]) == "OURS"
    mapping.write_text("preliminary = false")
    assert "no message" in analysed.preview("--mapping", mapping).output
    mapping.write_text("flags = 1")
    assert "flags" in str(analysed.preview("--mapping", mapping).exception)


def test_the_mapping_of_the_settings(analysed: Site) -> None:
    mapping = analysed.folder / "mapping.toml"
    mapping.write_text('leave_out = ["SFT"]')
    analysed.write_settings(f'[hl7]\nhost = "h"\nport = 1\nmapping = "{mapping}"\n')
    assert "SFT" not in analysed.preview("--raw").output


def test_nothing_is_stored_or_queued(analysed: Site) -> None:
    before = analysed.dump()
    for status in ReportStatus:
        assert analysed.preview("--status", status.value).exit_code == 0
    assert analysed.dump() == before


@pytest.mark.parametrize(
    ("uid", "why"), [("1.2.3", "no such study here"), (STUDY_UID, "no result yet")]
)
def test_what_cannot_be_shown(sites: list[Site], uid: str, why: str) -> None:
    assert why in str(sites[0].preview(uid=uid).exception)


def test_without_a_receiver_in_the_settings(analysed: Site) -> None:
    analysed.write_settings(hl7="")
    assert "no [hl7]" in str(analysed.preview().exception)


@given(st.lists(st.text(max_size=4), max_size=12), st.text(max_size=4))
def test_numbers_that_differ_differ_when_they_are_hidden(others: list[str], own: str) -> None:
    """Else the dry run would show fewer numbers in PID-3 than are sent."""
    order = replace(ORDER, patients=tuple(PatientKey(number) for number in others))
    study = replace(STUDY, patient=replace(PATIENT, patient_id=own))
    told = hidden(replace(case(), study=study, order=order))
    assert told.order is not None
    numbers = [told.study.patient.patient_id, *(key.patient_id for key in told.order.patients)]
    assert len(set(numbers)) == len({own, *others})
    assert [not number for number in numbers] == [not number for number in (own, *others)]


def test_every_number_of_the_patient_is_previewed() -> None:
    mapping = parse_mapping('[patient]\nnumbers = "all"', "m")
    emr, site = Hl7Settings(host="h", port=1), SiteSettings(name="bvdk")
    encoder = OruEncoder(emr, site, CountingUids(), PHOI_VERSION, mapping)
    other = PatientKey("BN-999888", PATIENT.issuer)
    of = replace(case(), order=replace(ORDER, patients=(*ORDER.patients, other)))
    message = hl7.parse(encoder.encode(hidden(of))[0].content.decode())
    assert str(message.segment("PID")[3]) == "XX-000000^^^BVDK^MR~XX-000001^^^BVDK"


@given(st.text(max_size=20), st.text(max_size=20))
def test_no_letter_of_a_name_shows(name: str, number: str) -> None:
    patient = replace(PATIENT, name=name, patient_id=number)
    told = hidden(replace(case(), study=replace(STUDY, patient=patient), order=ORDER)).study.patient
    for value, shown in ((name, told.name), (number, told.patient_id)):
        assert len(shown) == len(value)
        assert {c for c in shown if c.isalnum() or not c.isascii()} <= set("Xx0")
