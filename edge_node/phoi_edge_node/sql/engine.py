"""Opening the database and bringing its schema up to date."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError

from phoi_edge_node.errors import EdgeError
from phoi_edge_node.ports import Clock
from phoi_edge_node.sql import tables

# A due time further off than any retry delay was written by a clock that was wrong.
LONGEST_WAIT = timedelta(hours=6)
_MIGRATIONS = Path(__file__).parent / "migrations"


def open_engine(url: str, default_issuer: str = "") -> sa.Engine:
    """An engine whose schema is current.

    Args:
        default_issuer: who gave the patients' numbers on images that do not say; "": unknown.

    SQLite runs in WAL mode with every commit synced to disk, but for those that may be found again
    (``Database._write``), and each writing transaction takes the write lock at its beginning, so
    that two threads wait for each other instead of failing.

    Raises:
        EdgeError: a later version of Phoi wrote the database, or it cannot be used now.
    """
    engine = sa.create_engine(
        url,
        pool_pre_ping=not url.startswith("sqlite"),
        hide_parameters=True,  # an error would tell a patient's name
    )
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _configure_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
    try:
        with named_database_errors():
            _upgrade(engine)
    except BaseException:
        engine.dispose()
        raise
    return engine.execution_options(phoi_default_issuer=default_issuer)


@contextmanager
def named_database_errors() -> Iterator[None]:
    """What the database cannot do, in one line that a person can act on.

    Raises:
        EdgeError: no room on the disk, read only, another's file, no server.
    """
    try:
        yield
    except DBAPIError as error:
        reason = str(error.orig).splitlines()[0]
        raise EdgeError(f"cannot use the database: {reason}") from None


def _configure_sqlite(connection: Any, record: object) -> None:
    del record
    # Autocommit mode of the driver: the transactions begin in _begin_sqlite.
    connection.isolation_level = None
    for pragma in (
        "busy_timeout=30000",  # first: the others may have to wait for whoever writes
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: sa.Connection) -> None:
    options = connection.get_execution_options()
    driver: Any = connection.connection.driver_connection
    if not options.get("phoi_writes", False):
        driver.execute("BEGIN")
        return
    # Outside a transaction only; said each time, since others used the connection before.
    driver.execute(f"PRAGMA synchronous={'FULL' if options.get('phoi_synced', True) else 'NORMAL'}")
    driver.execute("BEGIN IMMEDIATE")


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    return config


def _upgrade(engine: sa.Engine) -> None:
    config = _config()
    connection = engine.connect().execution_options(phoi_writes=True)
    with connection, _tables_may_be_rebuilt(connection), connection.begin():
        _refuse_later_schema(connection, config)
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        if engine.dialect.name == "sqlite":
            _require_sound_keys(connection)


@contextmanager
def _tables_may_be_rebuilt(connection: sa.Connection) -> Iterator[None]:
    """SQLite changes a column by making its table anew, to which others refer meanwhile.

    So foreign keys are not enforced in between (https://www.sqlite.org/lang_altertable.html,
    section 7), which can be said outside a transaction only, and are looked at before it ends.
    """
    if connection.dialect.name != "sqlite":
        yield
        return
    driver: Any = connection.connection.driver_connection
    driver.execute("PRAGMA foreign_keys=OFF")
    try:
        yield
    finally:
        driver.execute("PRAGMA foreign_keys=ON")


def _require_sound_keys(connection: sa.Connection) -> None:
    if connection.exec_driver_sql("PRAGMA foreign_key_check").first() is not None:
        raise AssertionError("a migration left a row that refers to none")


def _refuse_later_schema(connection: sa.Connection, config: Config) -> None:
    present = MigrationContext.configure(connection).get_current_revision()
    if present is not None and present not in _revisions(config):
        raise EdgeError(
            f"the database was written by a later version of Phoi (schema {present}): install that "
            "version, or restore a backup that this one made"
        )


def known_schemas() -> tuple[str, frozenset[str]]:
    """The schema of this version of Phoi, and all that it can bring forward to it."""
    config = _config()
    return str(ScriptDirectory.from_config(config).get_current_head()), _revisions(config)


def _revisions(config: Config) -> frozenset[str]:
    return frozenset(s.revision for s in ScriptDirectory.from_config(config).walk_revisions())


class Database:
    """Short transactions on one engine; the base of the store's parts."""

    def __init__(self, engine: sa.Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock

    @contextmanager
    def _read(self) -> Iterator[sa.Connection]:
        with self._engine.begin() as connection:
            yield connection

    @contextmanager
    def _write(self, *, synced: bool = True) -> Iterator[sa.Connection]:
        """One transaction.

        Args:
            synced: False: on SQLite a power cut may undo it, with all that came after it and was
                not synced either. The next one that is synced makes it durable too: the log is
                one, and what is read back of it is its beginning. PostgreSQL syncs it anyway,
                since its machine may fail while this process goes on and never looks again.
        """
        connection = self._engine.connect().execution_options(phoi_writes=True, phoi_synced=synced)
        with connection, connection.begin():
            yield connection

    def _audit(
        self,
        connection: sa.Connection,
        username: str,
        action: str,
        study_instance_uid: str | None,
        detail: str = "",
    ) -> None:
        connection.execute(
            tables.audit.insert().values(
                at=self._clock.now(),
                username=username,
                action=action,
                study_instance_uid=study_instance_uid,
                detail=detail,
            )
        )


def insert_or_keep(connection: sa.Connection, table: sa.Table, values: Mapping[str, Any]) -> bool:
    """Insert a row, unless its key is there; waits for a transaction that inserts it just now.

    Returns:
        False where the key was there: then nothing changed.
    """
    insert = _insert(connection, table).values(values).on_conflict_do_nothing()
    return connection.execute(insert).rowcount == 1


def insert_or_replace(
    connection: sa.Connection, table: sa.Table, values: Mapping[str, Any]
) -> None:
    """Insert a row, or give the row of its key these values."""
    insert = _insert(connection, table).values(values)
    connection.execute(
        insert.on_conflict_do_update(index_elements=table.primary_key.columns, set_=dict(values))
    )


def _insert(connection: sa.Connection, table: sa.Table) -> sqlite.Insert | postgresql.Insert:
    # The same clause in both, for which SQLAlchemy's general insert() has no words.
    if connection.dialect.name == "sqlite":
        return sqlite.insert(table)
    return postgresql.insert(table)


def hold(connection: sa.Connection, names: Iterable[str]) -> None:
    """Let no other transaction hold one of these names until this one ends.

    For what has no row yet that could be locked. Taken in order, so that two never wait for each
    other. SQLite has its one writer already.
    """
    if connection.dialect.name == "postgresql":
        for name in sorted(set(names)):
            key = sa.func.hashtextextended(name, 0)
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(key)))


def for_update(query: sa.Select[Any]) -> sa.Select[Any]:
    """Lock the selected rows on PostgreSQL; SQLite has its one writer already."""
    return query.with_for_update(skip_locked=True)


def due(column: sa.Column[datetime], now: datetime) -> sa.ColumnElement[bool]:
    """The time has come, or it cannot be meant."""
    return sa.or_(column <= now, column > now + LONGEST_WAIT)
