"""What is read out of a CapabilityStatement."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from phoi_edge_node.fhir import capability
from phoi_edge_node.fhir.bundle import FhirEncoder
from phoi_edge_node.fhir.http import Answer
from phoi_edge_node.settings import FhirSettings, SiteSettings
from support.cases import PHOI_VERSION, CountingUids, case

CONDITIONAL = {"conditionalCreate": True, "conditionalUpdate": True}
ALL = sorted([*capability.CREATED, *capability.UPDATED])
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


def statement(**changes: Any) -> dict[str, Any]:
    rest = {
        "mode": "server",
        "interaction": [{"code": "transaction"}],
        "resource": [{"type": name, **CONDITIONAL} for name in ALL],
    }
    return {
        "resourceType": "CapabilityStatement",
        "fhirVersion": "4.0.1",
        "format": ["xml", "application/fhir+json"],
        "rest": [{"mode": "client"}, rest | changes],
    }


def read(told: dict[str, Any]) -> capability.Capability:
    found = capability.read(told)
    assert found is not None
    return found


def test_a_server_that_has_all() -> None:
    found = read(statement())
    assert (found.speaks_r4, found.transactions, found.unsaid) == (True, True, ())


def test_what_is_needed_is_what_is_sent() -> None:
    settings = FhirSettings(base_url="http://127.0.0.1:9/fhir")
    encoder = FhirEncoder(settings, SiteSettings(name="bvdk"), CountingUids(), PHOI_VERSION)
    sent = json.loads(encoder.encode(case())[0].content)["entry"]
    by_method = {
        method: {e["resource"]["resourceType"] for e in sent if e["request"]["method"] == method}
        for method in ("POST", "PUT")
    }
    assert by_method == {"POST": set(capability.CREATED), "PUT": set(capability.UPDATED)}


@pytest.mark.parametrize(
    ("changes", "unsaid"),
    [
        ({"resource": []}, (f"the resources {', '.join(ALL)}",)),
        (
            {"resource": [{"type": n, **CONDITIONAL} for n in ALL if n != "Task"]},
            ("the resources Task",),
        ),
        (
            {"resource": [{"type": n, "conditionalUpdate": n != "Task"} for n in ALL]},
            (
                "conditional create of Device, ImagingStudy, Patient, Provenance",
                "conditional update of Task",
            ),
        ),
    ],
)
def test_what_is_lacking_is_named(changes: dict[str, Any], unsaid: tuple[str, ...]) -> None:
    assert read(statement(**changes)).unsaid == unsaid


def test_a_server_of_xml_only() -> None:
    assert read(statement() | {"format": ["xml"]}).unsaid == ("the format json",)


@pytest.mark.parametrize(
    ("version", "is_r4"),
    [
        ("4.0.1", True),
        ("4.0", True),
        ("4.3.0", True),
        ("4.1.0", False),
        ("5.0.0", False),
        ("4.0.1 of Nguyễn", False),
        ("", False),
    ],
)
def test_r4_and_r4b(version: str, is_r4: bool) -> None:  # noqa: FBT001
    assert read(statement() | {"fhirVersion": version}).speaks_r4 is is_r4


DATES = st.from_regex(
    r"\A(Mon|Fri), [0-9]{1,3} (Jan|Feb|Xxx) [0-9]{1,6} [0-9]{1,3}:[0-9]{2}:[0-9]{2} ?"
    r"(GMT|[+-][0-9]{1,6}|)?\Z"
)


@given(st.text(max_size=40) | st.text("0123456789²٣", max_size=30) | DATES)
def test_any_wait_can_be_read(retry_after: str) -> None:
    assert Answer(503, {}, retry_after).wait_s(datetime(2026, 1, 1, tzinfo=UTC)) >= 0


@given(st.dictionaries(st.sampled_from(["format", "rest", "fhirVersion"]), ANYTHING))
def test_any_json_can_be_read(told: dict[str, Any]) -> None:
    found = read({"resourceType": "CapabilityStatement"} | told)
    assert found.unsaid
