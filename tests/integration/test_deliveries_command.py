"""``phoi deliveries``, beside a node that runs."""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from phoi_edge_node.bootstrap import only_node, open_storage
from phoi_edge_node.cli.deliveries import app
from phoi_edge_node.ports import DocumentKind, Refused, Unreachable
from phoi_edge_node.result import Priority
from phoi_edge_node.settings import read_settings
from phoi_edge_node.store import Outgoing, StudyStore
from phoi_edge_node.study import AnalysisEvent, DeliveryState
from phoi_edge_node.system import SystemClock
from support import values
from typer.testing import CliRunner, Result

UID = "1.2.3"


def deliveries(settings: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "-s", str(settings)])


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    path = tmp_path / "edge.toml"
    path.write_text(f'data = "{tmp_path / "data"}"\n[site]\nname = "bv"\nlanguage = "en"\n')
    return path


@pytest.fixture
def store(settings: Path) -> Iterator[StudyStore]:
    """Of a node that runs: SEG refused, SR not tried, ORU put off."""
    told = read_settings(settings)
    storage = open_storage(told, SystemClock())
    store = storage.store
    store.add_instance(replace(values.instance(1), received_at=SystemClock().now()))
    analysis_id = store.complete_study(UID, Priority.ROUTINE)
    assert analysis_id
    assert store.claim_analysis()
    outgoing = [
        Outgoing(values.document("a", DocumentKind.SEGMENTATION), ("pacs",)),
        Outgoing(values.document("b"), ("pacs",)),
        Outgoing(values.document("c", DocumentKind.HL7_ORU), ("emr",)),
    ]
    assert store.finish_analysis(analysis_id, AnalysisEvent.FINISH, values.result(), outgoing)
    for lane, answer in (("pacs", Refused("status 0xA900")), ("emr", Unreachable("no answer"))):
        claimed = store.claim_delivery(lane)
        assert claimed
        store.settle_delivery(claimed[0].id, answer, SystemClock().now())
    with only_node(told.data):
        yield store
    storage.engine.dispose()


def test_it_lists_what_has_not_arrived_and_why(settings: Path, store: StudyStore) -> None:
    shown = deliveries(settings, "list")
    assert shown.exit_code == 1
    assert "3 not arrived, 1 of them given up" in shown.output
    assert "The PACS says that the object does not fit its kind. (status 0xA900)" in shown.output
    assert "(no answer)" in shown.output
    secrets = (values.PATIENT.patient_id, "Nguy", "1961")
    assert not any(secret in shown.output for secret in secrets)
    assert "1 not arrived, 1 of" in deliveries(settings, "list", "--dead").output
    of_emr = deliveries(settings, "list", "--destination", "emr")
    assert (of_emr.exit_code, of_emr.output.splitlines()[-1]) == (
        0,
        "1 not arrived, 0 of them given up",
    )


def test_it_sends_again_and_the_audit_says_who(settings: Path, store: StudyStore) -> None:
    (dead,) = store.deliveries(states=(DeliveryState.DEAD,))
    assert deliveries(settings, "resend", str(dead.id)).output == "1 will be sent again\n"
    assert store.deliveries(states=(DeliveryState.DEAD,)) == []
    again = deliveries(settings, "resend", str(dead.id))
    assert f"delivery {dead.id} cannot be sent again" in str(again.exception)
    entry = store.audit()[0]
    assert (entry.username, entry.action) == (getpass.getuser(), "resend")


def test_it_sends_everything_of_a_destination_again(settings: Path, store: StudyStore) -> None:
    everything = deliveries(settings, "resend", "--all", "--destination", "pacs")
    assert everything.output == "1 will be sent again\n"
    assert store.deliveries(states=(DeliveryState.DEAD,)) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["resend"], "name one number"),
        (["resend", "--all"], "name one number"),
        (["resend", "1", "--all", "--destination", "pacs"], "name one number"),
        (["resend", "999"], "there is no delivery 999"),
    ],
)
def test_what_it_does_not_understand_it_says(
    settings: Path, arguments: list[str], says: str
) -> None:
    found = deliveries(settings, *arguments)
    assert found.exit_code != 0
    assert says in str(found.exception)
