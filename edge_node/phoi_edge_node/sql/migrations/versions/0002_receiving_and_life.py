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
    _add_to_deliveries()
    _add_to_reviews()


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


def _add_to_deliveries() -> None:
    op.add_column("deliveries", sa.Column("queued_at", UtcDateTime(), nullable=True))
    op.execute("UPDATE deliveries SET queued_at = created_at")
    with op.batch_alter_table("deliveries") as table:
        table.alter_column("queued_at", existing_type=UtcDateTime(), nullable=False)


def _add_to_reviews() -> None:
    op.add_column("reviews", sa.Column("state_since", UtcDateTime(), nullable=True))
    op.add_column("reviews", sa.Column("acknowledged_by", sa.String(length=64), nullable=True))
    op.execute(
        "UPDATE reviews SET state_since = coalesce(signed_at, (SELECT finished_at FROM analyses "
        "WHERE analyses.id = reviews.analysis_id))"
    )
    with op.batch_alter_table("reviews") as table:
        table.alter_column("state_since", existing_type=UtcDateTime(), nullable=False)
