"""Logs say where something broke, and never what a library put into its exception."""

from __future__ import annotations

import json
import logging

import pytest
import structlog
from phoi_edge_node.logs import configure_logs

NAME = "NGUYỄN THỊ BÍ MẬT"


def test_an_exception_is_told_by_type_and_place_without_its_text(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logs()
    log = structlog.get_logger()
    try:
        int(NAME)
    except ValueError:
        log.exception("it broke", study_instance_uid="1.2.3")
    line = json.loads(capsys.readouterr().err)
    assert line["event"] == "it broke"
    assert line["study_instance_uid"] == "1.2.3"
    assert line["exception"] == "ValueError"
    assert "test_logs" in line["at"][0]
    assert NAME not in json.dumps(line, ensure_ascii=False)


def test_an_exception_in_a_library_is_told_by_its_type(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """pynetdicom logs the tracebacks of what it cannot decode."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    configure_logs()
    try:
        int(NAME)
    except ValueError as error:
        logging.getLogger("pynetdicom.dul").exception(error)  # noqa: TRY401 - as it does
    assert capsys.readouterr().err == "pynetdicom.dul ERROR\nValueError\n"
