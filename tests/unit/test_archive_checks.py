"""What the doctor says of archives that are asked what they hold."""

from __future__ import annotations

from phoi_edge_node.checks import Health, check_source
from phoi_edge_node.testing import FakeImageSource


def test_an_archive_that_answers_is_good() -> None:
    found = check_source(FakeImageSource("1.2.3", {}, name="pacs"))
    assert (found.health, found.what, found.remedy) == (Health.GOOD, "questions to pacs", "")


def test_one_that_does_not_is_bad_and_somebody_is_told_what_to_do() -> None:
    archive = FakeImageSource("1.2.3", {}, name="pacs")
    archive.silent = True
    found = check_source(archive)
    assert found.health is Health.BAD
    assert found.seen == "it gives no answer"
    assert "Query/Retrieve" in found.remedy
