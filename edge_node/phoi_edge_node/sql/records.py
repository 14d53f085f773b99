"""Reading what the database remembers, for the doctor: nothing is made, migrated or written."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import sqlalchemy as sa
from alembic.migration import MigrationContext
from sqlalchemy.exc import DBAPIError

from phoi_edge_node.checks.probes import Records, SchemaAge
from phoi_edge_node.errors import EdgeError
from phoi_edge_node.sql.engine import known_schemas
from phoi_edge_node.sql.sql_store import SqlStore
from phoi_edge_node.study import DeliveryState, ReviewState
from phoi_edge_node.system import SystemClock

_CONNECT_S = 5


def read_records(url: str) -> Records:
    """What an operator should know.

    Raises:
        EdgeError: the database cannot be read; the text says why.
    """
    where = sa.engine.make_url(url)
    sqlite = where.get_backend_name() == "sqlite"
    if sqlite and not Path(where.database or "").exists():
        return Records(SchemaAge.ABSENT)
    options = {} if sqlite else {"connect_args": {"connect_timeout": _CONNECT_S}}
    try:
        engine = sa.create_engine(_read_only(where), **options)
    except (ImportError, sa.exc.ArgumentError) as error:
        raise EdgeError(f"{type(error).__name__}: {error}") from None
    with closing(_Disposing(engine)):
        try:
            return _read(engine)
        except DBAPIError as error:
            raise EdgeError(str(error.orig).splitlines()[0]) from None


class _Disposing:
    """An engine as something to close."""

    def __init__(self, engine: sa.Engine) -> None:
        self.close = engine.dispose


def _read_only(where: sa.URL) -> sa.URL | str:
    if where.get_backend_name() == "sqlite":
        return f"sqlite:///file:{where.database}?mode=ro&uri=true"
    return where.update_query_dict({"options": "-c default_transaction_read_only=on"})


def _read(engine: sa.Engine) -> Records:
    with engine.connect() as connection:
        schema = MigrationContext.configure(connection).get_current_revision()
    if schema is None:
        return Records(SchemaAge.ABSENT)
    newest, known = known_schemas()
    if schema not in known:
        return Records(SchemaAge.LATER, schema)
    if schema != newest:
        return Records(SchemaAge.EARLIER, schema)
    store = SqlStore(engine, SystemClock())
    counts = store.counts()
    dead = {
        name: counted.number
        for (name, state), counted in counts.deliveries.items()
        if state is DeliveryState.DEAD
    }
    unsigned = counts.reviews.get(ReviewState.OPEN)
    return Records(SchemaAge.CURRENT, schema, store.pauses(), dead, unsigned)
