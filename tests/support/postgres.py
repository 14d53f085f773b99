"""A throw-away PostgreSQL cluster, from Debian's package, on a Unix socket only."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa


def _binaries() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    assert found, "PostgreSQL is missing: run scripts/install-tools"
    return found[-1].parent


def _as_postgres(command: list[str]) -> list[str]:
    # The server refuses to run as root.
    return ["runuser", "-u", "postgres", "--", *command] if os.geteuid() == 0 else command


@contextmanager
def postgres() -> Iterator[str]:
    """The SQLAlchemy URL of a fresh, empty database."""
    binaries = _binaries()
    folder = Path(tempfile.mkdtemp(prefix="phoi-pg-"))
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres")
    data = folder / "data"
    initdb = [str(binaries / "initdb"), "-D", str(data), "-U", "phoi", "-A", "trust", "--no-sync"]
    subprocess.run(_as_postgres(initdb), check=True, capture_output=True, cwd=folder)
    control = [str(binaries / "pg_ctl"), "-D", str(data), "-w"]
    options = f"-k {folder} -c listen_addresses='' -c fsync=off"
    log = str(folder / "log")
    start = [*control, "-l", log, "-o", options, "start"]
    subprocess.run(_as_postgres(start), check=True, stdout=subprocess.DEVNULL, cwd=folder)
    try:
        yield f"postgresql+psycopg://phoi@/postgres?host={folder}"
    finally:
        stop = [*control, "-m", "immediate", "stop"]
        subprocess.run(_as_postgres(stop), check=True, stdout=subprocess.DEVNULL, cwd=folder)
        shutil.rmtree(folder)


def emptied(url: str) -> str:
    """The same database, with nothing in it."""
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text("DROP SCHEMA public CASCADE"))
        connection.execute(sa.text("CREATE SCHEMA public"))
    engine.dispose()
    return url
