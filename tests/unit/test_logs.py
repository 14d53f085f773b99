"""Logs say where something broke, and never what a library put into its exception."""

from __future__ import annotations

import json
import logging
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import structlog
from phoi_models.errors import PhoiError
from phoi_models.logs import LogFile, configure_logs

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
    line = json.loads(capsys.readouterr().err)
    assert (line["library"], line["level"]) == ("pynetdicom.dul", "error")
    assert line["exception"] == "ValueError"
    assert NAME not in json.dumps(line, ensure_ascii=False)


def test_a_file_of_lines_is_set_aside_when_it_is_full_and_only_some_are_kept(
    tmp_path: Path,
) -> None:
    path = tmp_path / "edge.log"
    configure_logs(file=LogFile(path, maximum_mb=1, keep=2))
    log = structlog.get_logger()
    for number in range(4500):
        log.info("a line", number=number, filling="x" * 900)
    structlog.get_config()["logger_factory"]()._handler.close()
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["edge.log", "edge.log.1", "edge.log.2"]
    assert all(file.stat().st_size <= 1_000_000 for file in files)
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert {"event", "level", "timestamp"} <= set(lines[0])
    assert max(line["number"] for line in lines) == 4499
    assert min(line["number"] for line in lines) > 0, "the oldest went"


def test_a_file_that_cannot_be_written_is_named_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(PhoiError, match=r"edge\.log cannot be written"):
        configure_logs(file=LogFile(tmp_path / "absent" / "edge.log"))


def test_a_level_leaves_out_what_is_below_it(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("warning")
    structlog.get_logger().info("not this")
    structlog.get_logger().warning("this")
    assert json.loads(capsys.readouterr().err)["event"] == "this"


def test_a_full_disk_behind_standard_error_stops_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    configure_logs()
    with Path("/dev/full").open("w", buffering=1, encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stderr", full)
        with pytest.raises(OSError, match="No space left"):
            full.write("a line\n")
        structlog.get_logger().info("a line")
        monkeypatch.undo()
        with suppress(OSError):
            full.close()
