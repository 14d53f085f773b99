"""How often a destination failed on a document, and surely did not take it; recalls."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from phoi_edge_node.sql.tables import UtcDateTime

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    counts = ("errors", "not_taken")
    for name in counts:
        op.add_column(
            "deliveries", sa.Column(name, sa.Integer(), nullable=False, server_default="0")
        )
    # Of earlier tries only this is known: whoever refused at once has nothing.
    op.execute("UPDATE deliveries SET not_taken = 1 WHERE state = 'dead' AND attempts = 1")
    with op.batch_alter_table("deliveries") as table:
        for name in counts:
            table.alter_column(name, existing_type=sa.Integer(), server_default=None)
    _make_room_for_recalls()


def _make_room_for_recalls() -> None:
    with op.batch_alter_table("pauses") as table:
        table.alter_column(
            "target", existing_type=sa.String(160), type_=sa.String(208), existing_nullable=False
        )
    op.create_table(
        "recalls",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("criteria", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("asked_by", sa.String(length=64), nullable=False),
        sa.Column("asked_at", UtcDateTime(), nullable=False),
        sa.Column("signed_too", sa.Boolean(), nullable=False),
        sa.Column("replacement", sa.String(length=208), nullable=False),
        sa.Column("switch", sa.String(length=16), nullable=False),
        sa.Column("due_at", UtcDateTime(), nullable=False),
        sa.Column("trouble", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "recall_items",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("recall_id", sa.Integer(), nullable=False),
        sa.Column("analysis_id", sa.String(length=64), nullable=False),
        sa.Column("study_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("action", sa.String(length=16), nullable=False),
        sa.Column("notice", sa.String(length=16), nullable=False),
        sa.Column("again", sa.String(length=16), nullable=False),
        sa.Column("due_at", UtcDateTime(), nullable=False),
        sa.Column("trouble", sa.Text(), nullable=False),
        sa.Column("confirmed_by", sa.String(length=64), nullable=True),
        sa.Column("confirmed_at", UtcDateTime(), nullable=True),
        sa.ForeignKeyConstraint(["recall_id"], ["recalls.id"]),
        sa.ForeignKeyConstraint(["analysis_id"], ["analyses.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    for name, columns in (
        ("ix_recall_items_recall_id", ["recall_id"]),
        ("ix_recall_items_analysis_id", ["analysis_id"]),
        ("ix_recall_items_study_instance_uid", ["study_instance_uid"]),
        ("notices_to_write", ["notice", "due_at"]),
        ("to_analyse_again", ["again", "due_at"]),
    ):
        op.create_index(name, "recall_items", columns, unique=False)
