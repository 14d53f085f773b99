"""A database that fails is told in one line, without the statement and its parameters."""

from __future__ import annotations

import pytest
from phoi_edge_node.errors import EdgeError
from phoi_edge_node.sql.engine import named_database_errors
from sqlalchemy.exc import OperationalError

NAME = "NGUYỄN THỊ BÍ MẬT"


def test_what_fails_late_in_the_start_is_a_plain_line_too() -> None:
    cause = Exception(f"database or disk is full\nDETAIL: {NAME}")
    with (
        pytest.raises(EdgeError) as caught,
        named_database_errors(),
    ):
        raise OperationalError("INSERT INTO studies", {"patient": NAME}, cause)
    assert str(caught.value) == "cannot use the database: database or disk is full"
    assert caught.value.__suppress_context__, "no traceback shows the rest"
