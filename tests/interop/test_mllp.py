"""Every outcome in every status at two MLLP receivers that were written for Node.js."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from phoi_edge_node.hl7v2.mllp import MllpDestination
from phoi_edge_node.ports import Delivered
from phoi_edge_node.settings import Hl7Settings
from phoi_edge_node.stand_ins.program import free_port
from support.cases import NAME
from support.hl7_mappings import MAPPINGS, messages
from support.mllp_receivers import as_parsed, fields_sent
from support.outside import wait_for

# What each acknowledges with. Enhanced mode: it has the message in safe storage.
RECEIVERS = {"node-hl7-server": "AA", "medplum": "AA", "medplum-enhanced": "CA"}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="module")
def ports(
    node_program: Callable[..., AbstractContextManager[dict[str, Any]]], kept: Path
) -> Iterator[dict[str, Any]]:
    with node_program("mllp_receivers.mjs", kept, free_port()) as running:
        yield running


@pytest.mark.parametrize("receiver", RECEIVERS)
@pytest.mark.parametrize(("number", "name"), list(enumerate(MAPPINGS)))
def test_is_taken_and_parsed_as_it_was_meant(
    ports: dict[str, Any], kept: Path, receiver: str, number: int, name: str
) -> None:
    emr = MllpDestination(Hl7Settings(host="127.0.0.1", port=ports[receiver]))
    for document in messages(MAPPINGS[name], first=1000 * number):
        assert emr.send(document) == Delivered(RECEIVERS[receiver])
        written = kept / f"{receiver}-{document.identity}.json"
        wait_for("message", written.exists)  # in enhanced mode it is parsed after the answer
        parsed = as_parsed(json.loads(written.read_text(encoding="utf-8")))
        assert parsed == fields_sent(document.content)
        if b"^^^^^^U" not in document.content:
            assert dict(parsed)["PID"][4].startswith(NAME)
