"""Every outcome in every status, as it is and as three hospitals want it, at others' receivers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from phoi_edge_node.hl7v2.mapping import MessageMapping
from phoi_edge_node.hl7v2.mllp import MllpDestination
from phoi_edge_node.ports import Delivered
from phoi_edge_node.settings import Hl7Settings
from support.cases import NAME
from support.emr import hl7_faults
from support.hl7_mappings import MAPPINGS, messages
from support.mllp_receivers import Receiver, fields_sent, hl7apy_server, python_hl7
from support.told_cases import CASES

RECEIVERS: dict[str, Callable[[Path], AbstractContextManager[Receiver]]] = {
    "python-hl7": python_hl7,
    "hl7apy": hl7apy_server,
}


@pytest.fixture(scope="module", params=RECEIVERS)
def receiver(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Receiver]:
    with RECEIVERS[request.param](tmp_path_factory.mktemp("receiver")) as running:
        yield running


@pytest.mark.parametrize(("number", "name"), list(enumerate(MAPPINGS)))
def test_is_taken_and_parsed_as_it_was_meant(receiver: Receiver, number: int, name: str) -> None:
    emr = MllpDestination(Hl7Settings(host="127.0.0.1", port=receiver.port))
    for document in messages(MAPPINGS[name], first=1000 * number):
        assert emr.send(document) == Delivered("AA")
        parsed = receiver.received(document.identity)
        assert parsed == fields_sent(document.content)
        if b"^^^^^^U" not in document.content:
            assert dict(parsed)["PID"][4].startswith(NAME)


def test_every_mapping_still_says_something_of_every_study() -> None:
    told = {name: len(messages(mapping)) for name, mapping in MAPPINGS.items()}
    assert told["as it is"] == len(CASES)
    assert all(told.values())


def test_hl7apy_would_find_a_fault() -> None:
    message = messages(MessageMapping())[0].content
    assert hl7_faults(message.replace(b"\rOBR|", b"\rNTE|"))
    assert hl7_faults(message.replace(b"|nodule-triage^", b"||nodule-triage^"))
