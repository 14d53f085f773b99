"""Accounts, the audit trail, problem reports, pauses and named facts."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from phoi_edge_node.accounts import Account, Role
from phoi_edge_node.desk import AuditEntry
from phoi_edge_node.sql import tables
from phoi_edge_node.sql.engine import Database, insert_or_keep, insert_or_replace
from phoi_edge_node.store import Pause, StoredAccount


class People(Database):
    """The part of the store that people and operators use."""

    def account(self, username: str) -> StoredAccount | None:
        """One account."""
        table = tables.accounts
        with self._read() as connection:
            row = connection.execute(
                sa.select(table).where(table.c.username == username)
            ).one_or_none()
        if row is None:
            return None
        account = Account(row.username, row.display_name, Role(row.role))
        return StoredAccount(account, row.password_hash)

    def put_account(self, stored: StoredAccount) -> None:
        """Add or replace an account."""
        account = stored.account
        with self._write() as connection:
            values = {
                "username": account.username,
                "display_name": account.display_name,
                "role": account.role,
                "password_hash": stored.password_hash,
            }
            insert_or_replace(connection, tables.accounts, values)

    def record_audit(
        self, username: str, action: str, study_instance_uid: str | None, detail: str
    ) -> None:
        """Append to the audit trail."""
        with self._write() as connection:
            self._audit(connection, username, action, study_instance_uid, detail)

    def audit(self, limit: int = 500) -> Sequence[AuditEntry]:
        """Newest first."""
        table = tables.audit
        query = sa.select(table).order_by(table.c.id.desc()).limit(limit)
        with self._read() as connection:
            rows = connection.execute(query).all()
        return [
            AuditEntry(r.at, r.username, r.action, r.study_instance_uid, r.detail) for r in rows
        ]

    def report_problem(self, username: str, text: str) -> int:
        """Keep a person's report; its number."""
        with self._write() as connection:
            self._audit(connection, username, "report_problem", None)
            number: int = connection.execute(
                tables.problems.insert()
                .values(at=self._clock.now(), username=username, text=text)
                .returning(tables.problems.c.id)
            ).scalar_one()
        return number

    def pauses(self) -> Sequence[Pause]:
        """What is stopped now."""
        table = tables.pauses
        with self._read() as connection:
            rows = connection.execute(sa.select(table).order_by(table.c.at)).all()
        return [Pause(row.target, row.username, row.at) for row in rows]

    def pause(self, target: str, username: str) -> None:
        """Stop a model, a destination or everything."""
        values = {"target": target, "username": username, "at": self._clock.now()}
        with self._write() as connection:
            insert_or_replace(connection, tables.pauses, values)
            self._audit(connection, username, "pause", None, target)

    def resume(self, target: str, username: str) -> None:
        """Let it run again."""
        table = tables.pauses
        with self._write() as connection:
            connection.execute(table.delete().where(table.c.target == target))
            self._audit(connection, username, "resume", None, target)

    def fact(self, key: str) -> str | None:
        """A small named text."""
        table = tables.facts
        with self._read() as connection:
            value: str | None = connection.scalar(
                sa.select(table.c.value).where(table.c.key == key)
            )
        return value

    def put_fact(self, key: str, value: str) -> None:
        """Set one."""
        with self._write() as connection:
            insert_or_replace(connection, tables.facts, {"key": key, "value": value})

    def next_number(self, key: str) -> int:
        """Count up a named sequence: 1, 2, 3, ..."""
        table = tables.facts
        here = table.c.key == key
        with self._write() as connection:
            # First the row, whose lock makes whoever else counts wait for this transaction.
            insert_or_keep(connection, table, {"key": key, "value": "0"})
            present: str = connection.execute(
                sa.select(table.c.value).where(here).with_for_update()
            ).scalar_one()
            number = int(present) + 1
            connection.execute(table.update().where(here).values(value=str(number)))
        return number
