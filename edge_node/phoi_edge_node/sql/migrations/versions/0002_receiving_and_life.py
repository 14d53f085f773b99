"""Since when a state holds, and how it is known that a study is whole."""

from __future__ import annotations

import json

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
    _add_patients_to_studies()
    _add_orders()


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


def _add_patients_to_studies() -> None:
    op.add_column("studies", sa.Column("patient_id", sa.Text(), nullable=True))
    connection = op.get_bind()
    studies = sa.table(
        "studies", *(sa.column(n) for n in ("study_instance_uid", "header", "patient_id"))
    )
    uid = studies.c.study_instance_uid
    for row in connection.execute(sa.select(uid, studies.c.header)).all():
        patient_id = json.loads(row.header)["patient"]["patient_id"]
        connection.execute(
            studies.update().where(uid == row.study_instance_uid).values(patient_id=patient_id)
        )
    with op.batch_alter_table("studies") as table:
        table.alter_column("patient_id", existing_type=sa.Text(), nullable=False)
        table.create_index("ix_studies_patient_id", ["patient_id"])


def _add_orders() -> None:
    numbers = ("placer", "filler", "accession_number", "study_instance_uid")
    op.create_table(
        "orders",
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=True),
        *(sa.Column(name, sa.Text(), nullable=False, index=True) for name in numbers),
        sa.Column("cancelled", sa.Boolean(), nullable=False),
        sa.Column("told_at", UtcDateTime(), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
    )
    op.create_table(
        "hospital_messages",
        sa.Column("identity", sa.String(length=64), primary_key=True),
        sa.Column("taken_at", UtcDateTime(), nullable=False, index=True),
    )
    op.create_table(
        "patient_merges",
        sa.Column("patient_id", sa.Text(), primary_key=True),
        sa.Column("issuer", sa.Text(), primary_key=True),
        sa.Column("surviving_id", sa.Text(), nullable=False, index=True),
        sa.Column("surviving_issuer", sa.Text(), nullable=False),
        sa.Column("told_at", UtcDateTime(), nullable=False),
    )
    op.create_table(
        "patient_updates",
        sa.Column("patient_id", sa.Text(), primary_key=True),
        sa.Column("issuer", sa.Text(), primary_key=True),
        sa.Column("told_at", UtcDateTime(), nullable=False),
    )
