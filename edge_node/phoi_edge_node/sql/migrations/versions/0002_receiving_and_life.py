"""Since when a state holds, and how it is known that a study is whole."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from phoi_edge_node.sql.tables import UtcDateTime

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    _add_to_studies()
    _add_to_analyses()


def _add_to_studies() -> None:
    for name in ("state_since", "receiving_since"):
        op.add_column("studies", sa.Column(name, UtcDateTime(), nullable=True))
    op.execute(
        "UPDATE studies SET state_since = last_received_at, receiving_since = first_received_at"
    )
    with op.batch_alter_table("studies") as table:
        for name in ("state_since", "receiving_since"):
            table.alter_column(name, existing_type=UtcDateTime(), nullable=False)


def _add_to_analyses() -> None:
    op.add_column("analyses", sa.Column("state_since", UtcDateTime(), nullable=True))
    op.add_column("analyses", sa.Column("completeness", sa.String(length=16), nullable=True))
    op.execute("UPDATE analyses SET state_since = coalesce(finished_at, started_at, created_at)")
    with op.batch_alter_table("analyses") as table:
        table.alter_column("state_since", existing_type=UtcDateTime(), nullable=False)
