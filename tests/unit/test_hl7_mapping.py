"""A hospital's mapping: what it changes, what it is refused, and that it can hide no outcome."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import hl7
import pytest
from hl7apy import load_library
from hl7apy.parser import parse_message
from hypothesis import given
from hypothesis import settings as at_most
from hypothesis import strategies as st
from phoi_edge_node.bootstrap import make_encoders
from phoi_edge_node.errors import SettingsError
from phoi_edge_node.hl7v2.known_values import KNOWN_VALUES
from phoi_edge_node.hl7v2.mapping import (
    FlagMapping,
    MessageMapping,
    ObservationsMapping,
    PatientMapping,
    parse_mapping,
    read_mapping,
)
from phoi_edge_node.hl7v2.observations import ALL_OBSERVED, observations
from phoi_edge_node.hl7v2.oru_r01 import OruEncoder
from phoi_edge_node.hl7v2.places import FIELDS
from phoi_edge_node.orders import PatientKey
from phoi_edge_node.ports import DocumentKind, ReportedCase, ReportStatus, ToldBefore
from phoi_edge_node.result import Outcome
from phoi_edge_node.settings import EdgeSettings, Hl7Settings, SiteSettings
from support.cases import (
    NAME,
    ORDER,
    PHOI_VERSION,
    STUDY,
    CountingUids,
    case,
    mixed_review,
    reject_all,
    result,
)
from support.hl7_mappings import EXAMPLES, PAGE

ORDERED = replace(case(), order=ORDER)
FINAL = replace(case(Outcome.POSITIVE, ReportStatus.FINAL), order=ORDER)


def encode(mapping: MessageMapping, of: ReportedCase = ORDERED) -> str:
    emr, site = Hl7Settings(host="127.0.0.1", port=1), SiteSettings(name="bvdk")
    encoder = OruEncoder(emr, site, CountingUids(), PHOI_VERSION, mapping)
    (document,) = encoder.encode(of)
    return document.content.decode()


def made(toml: str, of: ReportedCase = ORDERED) -> hl7.Message:
    return hl7.parse(encode(parse_mapping(toml, "m.toml"), of))


def field(message: hl7.Message, segment: str, number: int) -> str:
    fields = message.segment(segment)
    return str(fields[number]) if number < len(fields) else ""


# --- what it changes -------------------------------------------------------------------------


def test_without_entries_nothing_is_changed() -> None:
    assert parse_mapping("", "m.toml") == MessageMapping()


def test_constants_values_and_what_is_left_out() -> None:
    message = made(
        """
        leave_out = ["PV1", "OBR-31"]
        [constants]
        "MSH-3" = "A|I"
        "OBR-4" = ["CODE", "", "L"]
        "OBR-3.2" = "AI"
        "OBR-19.3" = "third"
        [values]
        "OBR-20" = "study.accession_number"
        "ORC-2" = "order.placer"
        "PID-2" = "patient.id"
        "MSH-4" = "site.name"
        """
    )
    assert field(message, "MSH", 3) == "A\\F\\I"
    assert field(message, "MSH", 4) == "bvdk"
    assert field(message, "OBR", 4) == "CODE^^L"
    assert field(message, "OBR", 3).endswith("^AI")
    assert field(message, "OBR", 19) == "^^third"
    assert field(message, "OBR", 20) == STUDY.accession_number
    assert field(message, "OBR", 31) == ""
    assert field(message, "ORC", 2) == r"P\T\1^HIS"
    assert field(message, "PID", 2) == STUDY.patient.patient_id
    assert "PV1" not in {str(segment[0]) for segment in message}


def test_a_value_that_is_not_known_leaves_the_field_as_it_was() -> None:
    mapping = '[values]\n"OBR-3" = "order.filler"\n"OBR-16" = "reviewer.id"'
    assert field(made(mapping), "OBR", 3) == "F1^RIS"
    assert field(made(mapping, case()), "OBR", 3).endswith("^PHOI")


def test_a_component_that_is_not_known_leaves_the_field_as_it_was() -> None:
    unnamed = replace(ORDER, procedure_code="", procedure="CT ngực")
    message = made('[values]\n"OBR-4.1" = "order.procedure"', replace(case(), order=unnamed))
    assert field(message, "OBR", 4).startswith("nodule-triage^")


def test_numbers_that_are_numbers() -> None:
    mapping = (
        '[values]\n"OBR-3.1" = "order.filler"\n"OBR-3.2" = "site.name"\n"PV1-19" = "patient.id"'
    )
    assert field(made(mapping), "OBR", 3) == "F1^bvdk"
    assert field(made(mapping), "PV1", 19) == STUDY.patient.patient_id


def test_a_field_comes_before_its_components() -> None:
    message = made('[values]\n"OBR-4" = "report.number"\n[constants]\n"OBR-4.2" = "x"')
    assert field(message, "OBR", 4).endswith("^x")


def test_every_known_value() -> None:
    signed = replace(case(Outcome.POSITIVE, ReportStatus.FINAL, mixed_review()), order=ORDER)
    for path, value in KNOWN_VALUES.items():
        place = "PID-9" if value.segments == {"PID", "PV1"} else "OBR-19"
        message = made(f'[values]\n"{place}" = "{path}"', signed)
        said = field(message, place[:3], int(place[4:]))
        known = bool(value.of(signed, "bvdk"))
        assert bool(said) is known, path
    assert not [p for p in ("order.procedure",) if KNOWN_VALUES[p].of(signed, "bvdk")]


def test_numbers_and_authorities_of_the_patient() -> None:
    order = replace(ORDER, patients=(*ORDER.patients, PatientKey("HN-9", ""), PatientKey("7", "X")))
    mapping = """
        [patient]
        numbers = "all"
        type = "PI"
        authorities = { "" = "HIS", "BVDK" = "bv" }
    """
    message = made(mapping, replace(case(), order=order))
    assert field(message, "PID", 3) == "BN-000123^^^bv^PI~HN-9^^^HIS~7^^^X"
    nameless = replace(STUDY, patient=replace(STUDY.patient, patient_id="", issuer=""))
    assert field(made(mapping, replace(case(), study=nameless)), "PID", 3).endswith("^^^PHOI^U")


@pytest.mark.parametrize(
    ("language", "words"), [("vi", "CÓ NỐT PHỔI"), ("en", "LUNG NODULE FOUND")]
)
def test_one_language(language: str, words: str) -> None:
    told = encode(parse_mapping(f'language = "{language}"', "m.toml"))
    other = {"vi": "LUNG NODULE FOUND", "en": "CÓ NỐT PHỔI"}[language]
    assert words in told
    assert other not in told


def test_local_codes_and_fewer_observations() -> None:
    message = made(
        """
        [observations]
        leave_out = ["center-lps-mm", "nodule-count"]
        [observations.codes]
        "81827009" = ["AIDK", "Đường kính", "L"]
        """
    )
    codes = {str(s[3][0][0]) for s in message.segments("OBX")}
    assert "AIDK" in codes
    assert not codes & {"81827009", "center-lps-mm", "nodule-count"}
    assert [str(s[1]) for s in message.segments("OBX")] == [
        str(n) for n in range(1, len(message.segments("OBX")) + 1)
    ]


def test_summary_tells_no_single_nodules() -> None:
    message = made('[observations]\nsend = "summary"')
    assert {str(s[4]) for s in message.segments("OBX")} == {""}
    assert "outcome" in {str(s[3][0][0]) for s in message.segments("OBX")}


@pytest.mark.parametrize("outcome", Outcome)
def test_one_text_is_flagged_as_the_outcome(outcome: Outcome) -> None:
    message = made('[observations]\nsend = "text"\nlines = "breaks"', case(outcome))
    (obx,) = message.segments("OBX")
    assert str(obx[2]) == "FT"
    assert (str(obx[8]) == "N") is (outcome is Outcome.NEGATIVE)
    assert "\\.br\\" in str(obx[5])


def test_each_line_an_observation_of_its_own() -> None:
    message = made('language = "vi"\n[observations]\nsend = "text"\nlines = "observations"')
    told = message.segments("OBX")
    assert [str(s[4]) for s in told] == [str(n) for n in range(1, len(told) + 1)]
    assert str(told[0][5]) == "CÓ NỐT PHỔI."
    assert {str(s[2]) for s in told} == {"TX"}


@pytest.mark.parametrize("preliminary", ["true", "false"])
def test_lines_that_no_longer_stand_are_deleted(preliminary: str) -> None:
    """A system that keeps each OBX by its OBX-4 must not show the end of an earlier report."""
    mapping = f'preliminary = {preliminary}\n[observations]\nsend = "text"\nlines = "observations"'
    positive = result(Outcome.POSITIVE)
    signed = ToldBefore(positive, case(status=ReportStatus.FINAL).review)
    negative = case(Outcome.POSITIVE, ReportStatus.CORRECTED, reject_all(positive))
    first = made(mapping, case(status=ReportStatus.FINAL)).segments("OBX")
    second = made(mapping, replace(negative, told_before=(signed,))).segments("OBX")
    assert [str(s[4]) for s in second] == [str(n) for n in range(1, len(first) + 1)]
    gone = [s for s in second if str(s[11]) == "D"]
    assert len(gone) == 4  # two nodules in two languages
    assert {(str(s[5]), str(s[8])) for s in gone} == {("", "")}


def test_flags() -> None:
    told = encode(parse_mapping('[flags]\nAA = "HH"', "m.toml"))
    assert "|HH|" in told
    assert "|AA|" not in told


def test_version_2_3_1_has_nothing_of_later_ones() -> None:
    message = made('version = "2.3.1"')
    assert field(message, "MSH", 12) == "2.3.1"
    assert {str(s[0]) for s in message} == {"MSH", "PID", "PV1", "ORC", "OBR", "OBX"}
    assert all(len(s) <= 18 for s in message.segments("OBX"))
    assert {str(s[2]) for s in message.segments("OBX")} == {"ST", "CE", "NM", "TX"}
    assert {str(s[4]) for s in message.segments("OBX")} == {"0", "1", "2"}
    (told,) = (s for s in message.segments("OBX") if str(s[3][0][0]) == "outcome")
    assert str(told[5][0][4]) == "CÓ NỐT PHỔI"


def test_nothing_is_told_before_somebody_has_signed() -> None:
    mapping = MessageMapping(preliminary=False)
    emr = Hl7Settings(host="127.0.0.1", port=1)
    encoder = OruEncoder(emr, SiteSettings(), CountingUids(), PHOI_VERSION, mapping)
    assert encoder.encode(case()) == ()
    assert len(encoder.encode(FINAL)) == 1
    withdrawn = replace(case(), status=ReportStatus.WITHDRAWN)
    assert encoder.encode(withdrawn) == ()  # nothing was told that could be withdrawn
    told = replace(withdrawn, predecessors={DocumentKind.HL7_ORU: ("PHOI1",)})
    assert len(encoder.encode(told)) == 1


def test_what_was_never_told_is_not_deleted() -> None:
    rejected = case(Outcome.POSITIVE, ReportStatus.FINAL, reject_all(result(Outcome.POSITIVE)))
    assert not [o for o in observations(rejected, preliminary=False) if o.status == "D"]
    signed = ToldBefore(result(Outcome.POSITIVE), case(status=ReportStatus.FINAL).review)
    corrected = replace(rejected, told_before=(signed,))
    assert [o for o in observations(corrected, preliminary=False) if o.status == "D"]


# --- what it is refused ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("toml", "why"),
    [
        ("x = [", "not valid TOML: "),
        ("a = " + 3000 * "[", "nested too deeply"),
        ("versoin = 2", "versoin: Extra inputs are not permitted"),
        ('version = "2.4"', "version: Input should be '2.3.1' or '2.5.1'"),
        ('leave_out = ["OBR"]', "'OBR' is no field"),
        ('leave_out = ["ZZZ-1"]', "only fields of MSH, PID"),
        ('leave_out = ["OBR-3"]', "OBR-3: this field cannot be left out"),
        ('leave_out = ["OBR-4.1"]', "only whole fields can be left out"),
        ('leave_out = ["PID-3"]', "as [patient] says"),
        ('leave_out = ["OBX-8"]', "write [flags]"),
        ('leave_out = ["OBR-25"]', "how far it is to be trusted"),
        ('leave_out = ["ORC"]\n[constants]\n"ORC-5" = "CM"', "ORC-5 is in leave_out"),
        ('leave_out = ["OBR-4"]', "cannot be left out"),
        ('[constants]\n"OBX-5" = "0"', "OBX-5: this field cannot be changed"),
        ('[constants]\n"OBX-3" = "X"', "write [observations.codes]"),
        ('[constants]\n"PID-8" = "F"', "the same of every patient"),
        ('[constants]\n"OBR-3" = "1"', "the same number"),
        ('[constants]\n"OBR-3.1" = "1"', "the same number"),
        ('[constants]\n"OBR-51" = "1"', "OBR has 50 fields in 2.5.1"),
        ('version = "2.3.1"\n[constants]\n"OBX-18" = "1"', "OBX has 17 fields in 2.3.1"),
        ('[constants]\n"MSH-18" = "8859/1"', 'the letters of "Nguyễn"'),
        ('[constants]\n"MSH-11" = "X"', "must be P, T or D"),
        ('[constants]\n"MSH-16" = "AL"', "one acknowledgement only"),
        ('[constants]\n"OBR-4" = ""', "must be one line of text"),
        ('[constants]\n"OBR-4" = "a\\rOBX|1"', "must be one line of text"),
        ('[constants]\n"OBR-4" = []', "write one text"),
        ('[constants]\n"OBR-4.1" = ["a", "b"]', "write one text"),
        (
            '[constants]\n"OBR-4" = "a"\n[values]\n"OBR-4" = "site.name"',
            "in constants and in values",
        ),
        ('[values]\n"OBR-4" = "patient"', "'patient' is no known value: patient.id"),
        ('[values]\n"MSH-4" = "patient.id"', "patient.id may not stand in MSH"),
        ('[values]\n"OBX-16" = "patient.name"', "patient.name may not stand in OBX"),
        ('[values]\n"OBR-3" = "model.name"', "no number of its own for each: patient.id, study."),
        ('[values]\n"ORC-3.1" = "result.outcome"', "no number of its own"),
        ('[values]\n"PV1-19" = "model.version"', "no number of its own"),
        ('[values]\n"PID-2" = "site.name"', "site.name may not stand in PID"),
        ('[values]\n"PID-18" = "patient.sex"', "no number of its own"),
        ('[values]\n"OBR-16.2" = "order.requester"', "fills a whole field: write OBR-16"),
        ('[values]\n"PV1-8.2" = "study.referring_physician"', "fills a whole field: write PV1-8"),
        ('[values]\n"PID-5" = "study.id"', "PID-5: this field cannot be changed"),
        ('[observations]\nleave_out = ["outcome"]', "keeps the result from being misread"),
        ('[observations]\nleave_out = ["nodule"]', "none of Phoi's observations"),
        ('[observations]\nlines = "observations"', 'needs send = "text"'),
        ('[observations.codes]\n"volume" = ["V", "V", "L"]', "none of Phoi's observations"),
        ('[observations.codes]\n"outcome" = ["V", "V"]', "outcome"),
        ('[observations.codes]\n"outcome" = ["nodule-count", "x", "99PHOI"]', "two observations"),
        ('[flags]\nA = "N"', "flags.A: Input should be"),
        ('[flags]\nN = ""', "flags.N: Extra inputs"),
    ],
)
def test_a_mistake_is_named(toml: str, why: str) -> None:
    with pytest.raises(SettingsError) as refused:
        parse_mapping(toml, "hospital.toml")
    assert str(refused.value).startswith("hospital.toml: ")
    assert why in str(refused.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        read_mapping(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes('language = "vi" # Đ'.encode("cp1258"))
    with pytest.raises(SettingsError, match="not UTF-8"):
        read_mapping(tmp_path / "latin.toml")


@given(st.text())
def test_any_text_is_a_mapping_or_a_plain_error(text: str) -> None:
    with suppress(SettingsError):
        assert isinstance(parse_mapping(text, "m"), MessageMapping)


PLACES = st.builds(
    "{}-{}{}".format,
    st.sampled_from(["MSH", "PID", "PV1", "ORC", "OBR", "OBX", "SFT"]),
    st.integers(0, 55),
    st.sampled_from(["", ".1", ".2", ".9", ".x"]),
)
WORDS = st.text(st.characters(), max_size=8) | st.sampled_from(["N", "0", "negative", "P", "UTF-8"])
CODES = st.sampled_from([term.code for term in ALL_OBSERVED])
TABLES = st.fixed_dictionaries(
    {},
    optional={
        "version": st.sampled_from(["2.3.1", "2.5.1"]),
        "language": st.sampled_from(["vi", "en", "both"]),
        "leave_out": st.lists(PLACES | st.sampled_from(["SFT", "PV1", "ORC", "TQ1"]), max_size=2),
        "constants": st.dictionaries(PLACES, WORDS | st.lists(WORDS, max_size=3), max_size=2),
        "values": st.dictionaries(PLACES, st.sampled_from(list(KNOWN_VALUES)), max_size=2),
        "patient": st.fixed_dictionaries(
            {},
            optional={"numbers": st.just("all"), "type": WORDS, "authorities": st.just({"": "H"})},
        ),
        "observations": st.fixed_dictionaries(
            {},
            optional={
                "send": st.sampled_from(["all", "summary", "text"]),
                "lines": st.sampled_from(["repetitions", "breaks"]),
                "leave_out": st.lists(CODES, max_size=3),
                "codes": st.dictionaries(CODES, st.tuples(WORDS, WORDS, WORDS), max_size=1),
            },
        ),
        "flags": st.fixed_dictionaries({}, optional={"AA": st.sampled_from(["A", "N", "HH"])}),
    },
)


@given(TABLES, st.sampled_from(Outcome))
def test_no_mapping_hides_or_breaks_a_result(tables: Mapping[str, Any], outcome: Outcome) -> None:
    try:
        mapping = MessageMapping(**tables)
    except ValueError:
        return
    of = replace(case(outcome), order=ORDER)
    message = hl7.parse(encode(mapping, of))
    plain = hl7.parse(encode(MessageMapping(), of))
    for segment, number in (("PID", 5), ("OBR", 25), ("MSH", 9), ("MSH", 10)):
        assert field(message, segment, number) == field(plain, segment, number)
    assert field(message, "PID", 3).startswith("BN-000123^")
    flags = {str(s[8]) for s in message.segments("OBX")} - {""}
    assert ("N" in flags) is (outcome is Outcome.NEGATIVE)
    assert flags <= ({"N"} if outcome is Outcome.NEGATIVE else {"A", "AA", "HH"})
    statuses = {str(s[11]) for s in message.segments("OBX")}
    assert statuses <= {"P", "X"}
    assert {str(s[0]) for s in message} <= {"MSH", "SFT", "PID", "PV1", "ORC", "OBR", "TQ1", "OBX"}
    words = str(message).lower()
    if "negative" not in str(tables).lower():
        assert ("negative" in words or "âm tính" in words) is (outcome is Outcome.NEGATIVE)


@at_most(max_examples=15)
@given(TABLES)
def test_hl7apy_reads_what_any_mapping_gives(tables: Mapping[str, Any]) -> None:
    try:
        mapping = MessageMapping(**tables)
    except ValueError:
        return
    content = encode(mapping)
    read_by_hl7apy = parse_message(content, find_groups=False)
    assert [segment.name for segment in read_by_hl7apy.children] == [
        line[:3] for line in content.split("\r") if line
    ]


def test_the_node_reads_the_mapping_that_its_settings_name(tmp_path: Path) -> None:
    path = tmp_path / "mapping.toml"
    emr = Hl7Settings(host="127.0.0.1", port=1, mapping=path)
    settings = EdgeSettings(data=tmp_path, hl7=emr)
    path.write_text('[constants]\n"MSH-3" = "OURS"')
    _, encoder = make_encoders(settings, CountingUids(), tmp_path)
    (document,) = encoder.encode(case())
    assert document.content.startswith(b"MSH|^~\\&|OURS|")
    path.write_text("language = 3")
    with pytest.raises(SettingsError, match=r"mapping\.toml: language"):
        make_encoders(settings, CountingUids(), tmp_path)


# --- the page --------------------------------------------------------------------------------


def rows(first_cell: str) -> list[list[str]]:
    table = PAGE.read_text(encoding="utf-8").split(f"\n| {first_cell} |")[1].split("\n\n")[0]
    lines = table.splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_the_page_names_every_value_and_where_it_may_stand() -> None:
    written = {row[0].strip("`"): (row[1], frozenset(row[2].split(", "))) for row in rows("value")}
    assert written == {p: (v.meaning, v.segments) for p, v in KNOWN_VALUES.items()}


def test_the_page_names_every_entry() -> None:
    named = set(re.findall(r"[a-z_]+", " ".join(row[0] for row in rows("entry"))))
    sections = (MessageMapping, PatientMapping, ObservationsMapping)
    entries = {name for section in sections for name in section.model_fields}
    assert entries <= named
    assert set(FlagMapping.model_fields) == {"A", "AA"}


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_entry_of_an_example_has_an_effect(name: str) -> None:
    patients = (*ORDER.patients, PatientKey("HN-9", ""))
    order = replace(ORDER, procedure_code="CTN", procedure="CT ngực", patients=patients)
    of = replace(FINAL, order=order)
    full = encode(parse_mapping(EXAMPLES[name], name), of)
    tables = tomllib.loads(EXAMPLES[name])
    for entry in tables:
        less = MessageMapping(**{k: v for k, v in tables.items() if k != entry})
        preliminary = entry == "preliminary"
        assert preliminary or encode(less, of) != full, entry
    assert NAME in full


def test_the_segments_have_as_many_fields_as_hl7apy_knows() -> None:
    for version, segments in FIELDS.items():
        known = load_library(version.value).SEGMENTS
        assert segments == {name: len(known[name][1]) for name in segments}
