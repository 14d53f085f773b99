"""Rejected associations are told in the log, with the AE titles, and not without end."""

from __future__ import annotations

from pathlib import Path

import pytest
from phoi_edge_node.dicom.storage_scu import Peer, echo
from phoi_edge_node.ports import Unreachable
from structlog.testing import capture_logs
from support.dicom_edge import running_edge


@pytest.mark.parametrize("receiver", ["pynetdicom", "lean"])
def test_a_wrong_ae_title_is_told_once_for_each_reason(tmp_path: Path, receiver: str) -> None:
    with (
        capture_logs() as lines,
        running_edge(tmp_path, receiver=receiver, allowed_calling_ae_titles=("CT1",)) as edge,
    ):
        wrong = Peer("OTHER", "127.0.0.1", edge.scp.port, timeout_s=5)
        answers = [echo(wrong, "CT1"), echo(wrong, "CT1"), echo(edge.peer, "STRANGER")]
    assert all(isinstance(answer, Unreachable) for answer in answers)
    told = [
        (line["why"], line["called"], line["calling"])
        for line in lines
        if line["event"] == "association rejected"
    ]
    assert told == [
        ("called AE title is not PHOI", "OTHER", "CT1"),
        ("calling AE title is not in dicom.allowed_calling_ae_titles", "PHOI", "STRANGER"),
    ]
