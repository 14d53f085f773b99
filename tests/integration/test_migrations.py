"""Every earlier schema, with rows that its own version wrote, comes forward on both databases."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from phoi_edge_node.errors import EdgeError
from phoi_edge_node.ports import DocumentKind
from phoi_edge_node.result import Priority, Verdict
from phoi_edge_node.sql.engine import open_engine
from phoi_edge_node.sql.sql_store import SqlStore
from phoi_edge_node.sql.tables import metadata
from phoi_edge_node.study import AnalysisState, DeliveryState, ReviewState, StudyState
from phoi_edge_node.testing import FakeClock
from support import values
from support.postgres import emptied, postgres

# Dumps of databases that were filled by the version of Phoi whose schema they have. A release that
# changes the schema adds the dump of the one before it.
SCHEMAS = Path(__file__).parent / "schemas"
REVISIONS = sorted({path.name.split(".")[0] for path in SCHEMAS.glob("*.sql")})

Rows = dict[str, list[dict[str, object]]]


@pytest.fixture(scope="module")
def postgres_url() -> Iterator[str]:
    with postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'phoi.sqlite'}"
    return emptied(request.getfixturevalue("postgres_url"))


def load(url: str, revision: str) -> None:
    database = sa.make_url(url)
    dump = (SCHEMAS / f"{revision}.{database.get_backend_name()}.sql").read_text(encoding="utf-8")
    if database.get_backend_name() == "sqlite":
        connection = sqlite3.connect(str(database.database))
        connection.executescript(dump)
        connection.close()
        return
    engine = sa.create_engine(url)
    with engine.begin() as link:
        link.connection.cursor().execute(dump)
    engine.dispose()


def read(url: str, columns: dict[str, list[str]] | None = None) -> Rows:
    """All rows, as the database gives them; with ``columns`` only those, by table."""
    engine = sa.create_engine(url)
    found = sa.MetaData()
    found.reflect(engine)
    rows: Rows = {}
    with engine.begin() as connection:
        for table in found.sorted_tables:
            names = [c.name for c in table.columns] if columns is None else columns.get(table.name)
            if names:
                chosen = sa.select(*(table.c[name] for name in names))
                read_rows = [dict(row) for row in connection.execute(chosen).mappings()]
                rows[table.name] = sorted(read_rows, key=repr)
    engine.dispose()
    return rows


@pytest.mark.parametrize("revision", REVISIONS)
def test_no_row_is_lost_or_changed_on_the_way(url: str, revision: str) -> None:
    load(url, revision)
    before = read(url)
    before.pop("alembic_version")
    assert before["instances"]
    assert before["dispositions"]
    open_engine(url).dispose()
    columns = {table: list(rows[0]) for table, rows in before.items() if rows}
    after = read(url, columns)
    assert after == {table: rows for table, rows in before.items() if rows}


def test_a_database_of_the_first_schema_is_worked_on(url: str) -> None:
    load(url, "0001")
    engine = open_engine(url)
    store = SqlStore(engine, FakeClock(values.AT + timedelta(hours=1)))
    states = {s.header.study_instance_uid: s.state for s in store.studies()}
    assert states == {
        **dict.fromkeys(("1.1", "1.2", "1.3", "1.4", "1.5"), StudyState.COMPLETE),
        "1.6": StudyState.RECEIVING,
    }
    (signed,) = store.analyses("1.1")
    review = store.review(signed.id)
    assert review.state is ReviewState.SIGNED
    assert [j.disposition.verdict for j in review.history] == [Verdict.REJECTED, Verdict.ACCEPTED]
    assert store.identities("1.1")[DocumentKind.STRUCTURED_REPORT] == ("1.1-1-sr", "1.1-final")
    assert [a.state for a in store.analyses("1.3")] == [
        AnalysisState.SUPERSEDED,
        AnalysisState.QUEUED,
    ]
    assert {d.state for d in store.deliveries("1.2")} == {DeliveryState.DEAD, DeliveryState.PENDING}
    # What ran when the old version ended comes first, then by priority as ever.
    assert store.requeue_interrupted() == 1
    claimed = [store.claim_analysis() for _ in range(4)]
    assert [a.study_instance_uid if a else None for a in claimed] == ["1.5", "1.3", "1.4", None]
    assert [s.study_instance_uid for s in store.settled_studies()] == ["1.1"]
    assert store.account("bs.an") is not None
    assert store.fact("usage") == "1"
    store.add_instance(values.instance(7, "1.6"))
    assert store.instance_counts()["1.6"] == 2
    with pytest.raises(sa.exc.DatabaseError, match="append-only"), engine.begin() as connection:
        connection.execute(sa.text("UPDATE dispositions SET reviewer = 'x'"))
    engine.dispose()


def test_a_lost_image_of_an_earlier_version_comes_back_without_a_new_revision(url: str) -> None:
    load(url, "0001")
    engine = open_engine(url)
    store = SqlStore(engine, FakeClock(values.AT + timedelta(hours=1)))
    (image, *_) = store.instances("1.1")
    store.lose_instances("1.1", {image.sop_instance_uid: "missing"})
    store.add_instance(image)
    assert store.complete_study("1.1", Priority.ROUTINE) is None
    assert len(store.analyses("1.1")) == 1
    engine.dispose()


def test_the_migrations_end_in_exactly_what_the_tables_say(url: str) -> None:
    """Types, indexes and what may be NULL, on a new database and on one that came forward."""
    load(url, "0001")
    engine = open_engine(url)
    with engine.begin() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def test_a_database_of_a_later_version_is_refused_in_plain_words(url: str) -> None:
    engine = open_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    before = read(url)
    with pytest.raises(EdgeError, match="later version of Phoi"):
        open_engine(url)
    assert read(url) == before
