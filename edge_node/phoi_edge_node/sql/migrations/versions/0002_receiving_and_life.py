"""Since when a state holds, and how it is known that a study is whole."""

from __future__ import annotations

import json
from collections import Counter
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from alembic import op
from phoi_edge_node.sql.tables import UtcDateTime

revision = "0002"
down_revision = "0001"

VERDICTS = ("accepted", "modified", "rejected", "missed")
FIGURES: dict[str, Any] = {
    "analysis_id": sa.String(),
    "model": sa.Text(),
    "outcome": sa.String(),
    "ended_at": UtcDateTime(),
    "receive_to_result_s": sa.Float(),
    "signed_at": UtcDateTime(),
    "result_to_review_s": sa.Float(),
    **{verdict: sa.Integer() for verdict in VERDICTS},
}


def upgrade() -> None:
    _add_to_studies()
    _add_to_analyses()
    _add_to_documents()
    _add_to_deliveries()
    _add_to_reviews()
    _add_patients_to_studies()
    _add_orders()
    _add_commitments()
    _index_by_state()
    _make_figures()
    _make_damages()


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
    op.add_column("analyses", sa.Column("images", sa.String(length=64), nullable=True))
    claims = sa.Column("claims", sa.Integer(), nullable=False, server_default=sa.text("0"))
    op.add_column("analyses", claims)
    op.execute("UPDATE analyses SET state_since = coalesce(finished_at, started_at, created_at)")
    with op.batch_alter_table("analyses") as table:
        table.alter_column("state_since", existing_type=UtcDateTime(), nullable=False)


def _add_to_documents() -> None:
    outdated: sa.Column[bool] = sa.Column(
        "outdated", sa.Boolean(), nullable=False, server_default=sa.false()
    )
    op.add_column("documents", outdated)
    op.create_index(
        "outdated_documents",
        "documents",
        ["study_instance_uid"],
        sqlite_where=sa.text("outdated = 1"),
        postgresql_where=sa.text("outdated"),
    )


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
        patient_id = json.loads(row.header)["patient"]["patient_id"][:64]
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


def _add_commitments() -> None:
    op.create_table(
        "commitment_requests",
        sa.Column("transaction_uid", sa.String(length=64), primary_key=True),
        sa.Column("ae_title", sa.String(length=16), primary_key=True),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("asked_at", UtcDateTime(), nullable=False),
        sa.Column("due_at", UtcDateTime(), nullable=False, index=True),
    )
    op.create_table(
        "commitments",
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=True),
        sa.Column(
            "delivery_id",
            sa.Integer(),
            sa.ForeignKey("deliveries.id"),
            nullable=False,
            index=True,
        ),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("archive", sa.String(length=32), nullable=False),
        sa.Column("transaction_uid", sa.String(length=64), nullable=False, index=True),
        sa.Column("sop_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("asked_at", UtcDateTime(), nullable=False),
        sa.Column("answered_at", UtcDateTime(), nullable=True),
    )
    op.create_index("commitments_by_state", "commitments", ["archive", "state"])


def _index_by_state() -> None:
    for table in ("studies", "analyses"):
        op.drop_index(op.f(f"ix_{table}_state"), table_name=table)
    for table in ("studies", "analyses", "reviews"):
        op.create_index(f"{table}_by_state", table, ["state", "state_since"])
    op.create_index("deliveries_by_state", "deliveries", ["destination", "state", "updated_at"])
    op.create_index(op.f("ix_studies_first_received_at"), "studies", ["first_received_at"])
    op.create_index(
        "later_revisions",
        "analyses",
        ["study_instance_uid"],
        sqlite_where=sa.text("revision > 1"),
        postgresql_where=sa.text("revision > 1"),
    )
    op.create_index("deliveries_of_all_lanes", "deliveries", ["state", "queued_at"])
    op.create_index(
        "troubled",
        "deliveries",
        ["destination", "failed_tries"],
        sqlite_where=sa.text("failed_tries > 0"),
        postgresql_where=sa.text("failed_tries > 0"),
    )


def _make_figures() -> None:
    op.create_table(
        "figures",
        sa.Column("analysis_id", sa.String(length=64), nullable=False),
        sa.Column("model", sa.Text(), nullable=True),
        sa.Column("outcome", sa.String(length=16), nullable=True),
        sa.Column("ended_at", UtcDateTime(), nullable=True),
        sa.Column("receive_to_result_s", sa.Float(), nullable=True),
        sa.Column("signed_at", UtcDateTime(), nullable=True),
        sa.Column("result_to_review_s", sa.Float(), nullable=True),
        *(sa.Column(verdict, sa.Integer(), nullable=True) for verdict in VERDICTS),
        sa.ForeignKeyConstraint(["analysis_id"], ["analyses.id"]),
        sa.PrimaryKeyConstraint("analysis_id"),
    )
    for moment in ("ended_at", "signed_at"):
        op.create_index(op.f(f"ix_figures_{moment}"), "figures", [moment])
    _count_what_was()


def _make_damages() -> None:
    op.create_table(
        "damages",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("study_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("sop_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("found_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_damages_study_instance_uid"), "damages", ["study_instance_uid"])


def _count_what_was() -> None:
    """The figures of analyses that were made before there were any, read from their results."""
    connection = op.get_bind()
    moments = {name: UtcDateTime() for name in ("finished_at", "last_received_at", "signed_at")}
    query = sa.text(
        "SELECT a.id, a.model, a.result, a.finished_at, s.last_received_at, r.signed, r.signed_at "
        "FROM analyses a JOIN studies s ON s.study_instance_uid = a.study_instance_uid "
        "LEFT JOIN reviews r ON r.analysis_id = a.id "
        "WHERE a.model IS NOT NULL OR a.finished_at IS NOT NULL"
    ).columns(**moments)
    figures = sa.table("figures", *(sa.column(name, kind) for name, kind in FIGURES.items()))
    for rows in connection.execute(query).partitions(1000):
        connection.execute(figures.insert(), [_figures(row) for row in rows])


def _figures(row: Any) -> dict[str, object]:
    ended, signed = row.finished_at, row.signed_at
    said = json.loads(row.signed)["dispositions"] if signed else []
    verdicts = Counter(disposition["verdict"] for disposition in said)
    return {
        "analysis_id": row.id,
        "model": row.model,
        "outcome": json.loads(row.result)["outcome"] if row.result else None,
        "ended_at": ended,
        "receive_to_result_s": _seconds(row.last_received_at, ended),
        "signed_at": signed,
        "result_to_review_s": _seconds(ended, signed),
        **{verdict: verdicts[verdict] if signed else None for verdict in VERDICTS},
    }


def _seconds(since: datetime | None, until: datetime | None) -> float | None:
    """None where it never came to that, or where images of a later revision came in between."""
    if since is None or until is None or until < since:
        return None
    return (until - since).total_seconds()
