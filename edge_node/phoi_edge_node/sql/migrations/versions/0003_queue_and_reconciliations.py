"""The queue's turns, comparisons with the archives, and which images were removed."""

from __future__ import annotations

from datetime import timedelta

import sqlalchemy as sa
from alembic import op
from phoi_edge_node.sql.tables import UtcDateTime

revision = "0003"
down_revision = "0002"

# Hours of patience of stat, urgent and routine when this was written.
PATIENCE = {0: 0, 1: 24, 2: 30}


def upgrade() -> None:
    op.add_column("analyses", sa.Column("turn_at", UtcDateTime(), nullable=True))
    _set_turns()
    with op.batch_alter_table("analyses") as table:
        table.alter_column("turn_at", existing_type=UtcDateTime(), nullable=False)
    op.create_index("queue", "analyses", ["state", "turn_at"], unique=False)
    op.create_table(
        "reconciliations",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("first", sa.Date(), nullable=False),
        sa.Column("last", sa.Date(), nullable=False),
        sa.Column("asked_by", sa.String(length=64), nullable=False),
        sa.Column("asked_at", UtcDateTime(), nullable=False),
        sa.Column("ended_at", UtcDateTime(), nullable=True),
        sa.Column("report", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "expired_images",
        sa.Column("study_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("images", sa.Text(), nullable=False),
        sa.Column("late", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["study_instance_uid"], ["studies.study_instance_uid"]),
        sa.PrimaryKeyConstraint("study_instance_uid"),
    )


def _set_turns() -> None:
    """Only those that still wait get a true one: nobody asks for the turn of the others."""
    op.execute("UPDATE analyses SET turn_at = created_at")
    analyses = sa.table(
        "analyses",
        sa.column("id", sa.String()),
        sa.column("state", sa.String()),
        sa.column("priority", sa.Integer()),
        sa.column("created_at", UtcDateTime()),
        sa.column("turn_at", UtcDateTime()),
    )
    connection = op.get_bind()
    waiting = sa.select(analyses).where(analyses.c.state.in_(("queued", "running")))
    for row in connection.execute(waiting).all():
        turn = row.created_at + timedelta(hours=PATIENCE[row.priority])
        connection.execute(analyses.update().where(analyses.c.id == row.id).values(turn_at=turn))
