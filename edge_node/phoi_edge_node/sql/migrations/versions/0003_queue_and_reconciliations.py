"""The queue's turns, comparisons with the archives, and which images were removed."""

from __future__ import annotations

import hashlib
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
    _say_which_images()
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


def _say_which_images() -> None:
    """Of complete studies, whose latest analysis was about all that is here, as it is told now.

    So an image that was lost from the disk and comes back makes no new revision of them either.
    """
    instances = sa.table(
        "instances",
        *(sa.column(name) for name in ("study_instance_uid", "sop_instance_uid", "sha256")),
    )
    analyses = sa.table(
        "analyses", *(sa.column(name) for name in ("study_instance_uid", "revision", "images"))
    )
    studies = sa.table("studies", sa.column("study_instance_uid"), sa.column("state"))
    here, connection = analyses.c.study_instance_uid, op.get_bind()
    latest = (
        sa.select(here, sa.func.max(analyses.c.revision))
        .join(studies, studies.c.study_instance_uid == here)
        .where(studies.c.state == "complete")
        .group_by(here)
        .having(sa.func.max(analyses.c.images).is_(None))
    )
    for uid, revision_number in connection.execute(latest).all():
        images = sa.select(instances.c.sop_instance_uid, instances.c.sha256)
        rows = connection.execute(images.where(instances.c.study_instance_uid == uid)).all()
        lines = "\n".join(f"{image} {digest}" for image, digest in sorted(map(tuple, rows)))
        told = {"images": hashlib.sha256(lines.encode()).hexdigest()}
        of_it = (here == uid, analyses.c.revision == revision_number)
        connection.execute(analyses.update().where(*of_it).values(told))


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
