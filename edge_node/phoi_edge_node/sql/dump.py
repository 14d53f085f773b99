"""The whole database as one file, while it is in use; and back again.

SQLite by its online backup API, PostgreSQL by its own ``pg_dump`` and ``pg_restore``. What a
restored database replaces is set aside beside it, never dropped.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
from contextlib import closing, suppress
from pathlib import Path

import sqlalchemy as sa
from phoi_models.files import sync_folder

from phoi_edge_node.errors import EdgeError

ASIDE = "before-restore-"  # what a restore replaced, with its time
_SQLITE, _POSTGRESQL = "database.sqlite", "database.pgdump"


def dump_database(url: str, folder: Path) -> Path:
    """Write one consistent copy of the database; whoever writes meanwhile is not held up.

    Returns:
        The file.

    Raises:
        EdgeError: it could not be written, or ``pg_dump`` is missing.
    """
    database = sa.make_url(url)
    if database.get_backend_name() != "sqlite":
        file = folder / _POSTGRESQL
        options = ("--format=custom", "--no-owner", f"--exclude-schema={ASIDE}*")
        _postgresql(database, "pg_dump", *options, f"--file={file}")
        return file
    file = folder / _SQLITE
    with closing(_open(database)) as source, closing(sqlite3.connect(file)) as target:
        source.backup(target)
        target.execute("PRAGMA journal_mode=DELETE")  # one file, without a log beside it
    return file


def check_dump(file: Path) -> None:
    """Can it be read to the end?

    Raises:
        EdgeError: it is damaged.
    """
    if file.name == _POSTGRESQL:
        _run(["pg_restore", "--file=/dev/null", str(file)], {})
        return
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as database:
        verdict = database.execute("PRAGMA integrity_check").fetchone()[0]
    if verdict != "ok":
        raise EdgeError(f"{file}: the copy of the database is damaged")


def find_dump(folder: Path) -> Path:
    """The file that ``dump_database`` wrote.

    Raises:
        EdgeError: there is none.
    """
    for name in (_SQLITE, _POSTGRESQL):
        if (folder / name).is_file():
            return folder / name
    raise EdgeError(f"{folder}: no copy of a database there")


def is_empty(url: str) -> bool:
    """Is there nothing yet that a restore would replace?"""
    database = sa.make_url(url)
    if database.get_backend_name() == "sqlite":
        return not Path(database.database or "").exists()
    engine = sa.create_engine(url, hide_parameters=True)
    try:
        return not sa.inspect(engine).get_table_names()
    finally:
        engine.dispose()


def restore_database(url: str, file: Path, aside: str) -> None:
    """Put a copy in the place of the database.

    Args:
        aside: what was there is kept under its name with this ending.

    Raises:
        EdgeError: the copy is of the other kind of database, or ``pg_restore`` fails.
    """
    database = sa.make_url(url)
    is_sqlite = database.get_backend_name() == "sqlite"
    if is_sqlite != (file.name == _SQLITE):
        raise EdgeError(
            f"{file.name} is not of the kind of database that database_url names: set it to the "
            "kind that was backed up"
        )
    if is_sqlite:
        _replace_file(Path(database.database or ""), file, aside)
    else:
        _replace_schema(url, file, aside)


def _replace_file(path: Path, file: Path, aside: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    with file.open("rb") as source, new.open("wb") as target:
        os.fchmod(target.fileno(), 0o600)
        while block := source.read(1 << 20):
            target.write(block)
        target.flush()
        os.fsync(target.fileno())
    kept = path.with_name(f"{path.name}.{aside}")
    if path.exists():
        _close_log(path)
        for ending in ("-wal", "-shm"):  # of a database too damaged to take its log in
            log = path.with_name(path.name + ending)
            if log.exists():
                log.rename(kept.with_name(kept.name + ending))
        os.link(path, kept)  # under both names, so that there is a database here at any moment
    try:
        new.rename(path)
    except BaseException:
        kept.unlink(missing_ok=True)  # it is still where it was
        raise
    sync_folder(path.parent)


def _close_log(path: Path) -> None:
    """Bring the log of a database that nobody uses into it, if it is sound."""
    with suppress(sqlite3.DatabaseError), closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode=DELETE")


def _replace_schema(url: str, file: Path, aside: str) -> None:
    engine = sa.create_engine(url, hide_parameters=True)
    options = ("--no-owner", "--single-transaction", "--exit-on-error")
    try:
        had_tables = bool(sa.inspect(engine).get_table_names())
        if had_tables:
            _run_statements(
                engine, f'ALTER SCHEMA public RENAME TO "{aside}"', "CREATE SCHEMA public"
            )
        try:
            _postgresql(sa.make_url(url), "pg_restore", *options, str(file))
        except BaseException:
            if had_tables:
                _run_statements(
                    engine, "DROP SCHEMA public", f'ALTER SCHEMA "{aside}" RENAME TO public'
                )
            raise
    finally:
        engine.dispose()


def _run_statements(engine: sa.Engine, *statements: str) -> None:
    """In one transaction."""
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(sa.text(statement))


def _open(database: sa.URL) -> sqlite3.Connection:
    path = Path(database.database or "")
    if not path.exists():
        raise EdgeError(f"{path}: no database there")
    return sqlite3.connect(path, timeout=30)


def _postgresql(database: sa.URL, program: str, *arguments: str) -> None:
    """Run one of PostgreSQL's programs on a database, with all that its URL says (TLS too).

    Passwords go by the environment, since everybody on the machine may read arguments.
    """
    query = dict(database.query)
    password = database.password or query.pop("password", "")
    shown = sa.URL.create(
        "postgresql",
        username=database.username,
        host=database.host,
        port=database.port,
        database=database.database,
        query=query,
    )
    environment = {"PGPASSWORD": str(password)} if password else {}
    _run([program, f"--dbname={shown.render_as_string()}", *arguments], environment)


def _run(command: list[str], environment: dict[str, str]) -> None:
    try:
        done = subprocess.run(
            command, env={**os.environ, **environment}, capture_output=True, check=False
        )
    except FileNotFoundError:
        raise EdgeError(f"{command[0]} is missing: install PostgreSQL's client programs") from None
    if done.returncode:
        # Its messages may quote a row.
        raise EdgeError(f"{command[0]} failed with status {done.returncode}")
