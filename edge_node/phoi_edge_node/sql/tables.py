"""The tables. Migrations under ``migrations/`` bring any earlier schema to this one."""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa


class UtcDateTime(sa.types.TypeDecorator[datetime]):
    """Aware UTC in Python; naive UTC in the database, where SQLite knows no zones."""

    impl = sa.DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Aware to naive UTC."""
        del dialect
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Naive UTC to aware."""
        del dialect
        return None if value is None else value.replace(tzinfo=UTC)


metadata = sa.MetaData()
UID = sa.String(64)

studies = sa.Table(
    "studies",
    metadata,
    sa.Column("study_instance_uid", UID, primary_key=True),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("state_since", UtcDateTime, nullable=False),
    sa.Column("receiving_since", UtcDateTime, nullable=False),
    sa.Column("header", sa.Text, nullable=False),
    sa.Column("patient_id", sa.Text, nullable=False, index=True),
    sa.Column("first_received_at", UtcDateTime, nullable=False, index=True),
    sa.Column("last_received_at", UtcDateTime, nullable=False, index=True),
    sa.Index("studies_by_state", "state", "state_since"),
)

instances = sa.Table(
    "instances",
    metadata,
    sa.Column("sop_instance_uid", UID, primary_key=True),
    sa.Column(
        "study_instance_uid",
        UID,
        sa.ForeignKey("studies.study_instance_uid"),
        nullable=False,
        index=True,
    ),
    sa.Column("series_instance_uid", UID, nullable=False),
    sa.Column("sop_class_uid", UID, nullable=False),
    sa.Column("transfer_syntax_uid", UID, nullable=False),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("modality", sa.String(16), nullable=False),
    sa.Column("calling_ae_title", sa.String(16), nullable=False),
    sa.Column("received_at", UtcDateTime, nullable=False),
)

expired_images = sa.Table(
    "expired_images",
    metadata,
    sa.Column(
        "study_instance_uid", UID, sa.ForeignKey("studies.study_instance_uid"), primary_key=True
    ),
    sa.Column("images", sa.Text, nullable=False),
    sa.Column("late", sa.Boolean, nullable=False),
)

analyses = sa.Table(
    "analyses",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column(
        "study_instance_uid", UID, sa.ForeignKey("studies.study_instance_uid"), nullable=False
    ),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("state_since", UtcDateTime, nullable=False),
    sa.Column("completeness", sa.String(16)),
    sa.Column("images", sa.String(64)),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("model", sa.Text),
    sa.Column("model_name", sa.String(128)),
    sa.Column("model_version", sa.String(64)),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("claims", sa.Integer, nullable=False),
    sa.Column("due_at", UtcDateTime, nullable=False),
    sa.Column("step", sa.String(32), nullable=False),
    sa.Column("fraction", sa.Float, nullable=False),
    sa.Column("error", sa.Text, nullable=False),
    sa.Column("result", sa.Text),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("started_at", UtcDateTime),
    sa.Column("finished_at", UtcDateTime),
    sa.Column("turn_at", UtcDateTime, nullable=False),
    sa.UniqueConstraint("study_instance_uid", "revision", name="one_analysis_per_revision"),
    sa.Index("queue", "state", "turn_at"),
    sa.Index("analyses_by_state", "state", "state_since"),
    sa.Index(
        "later_revisions",
        "study_instance_uid",
        sqlite_where=sa.text("revision > 1"),
        postgresql_where=sa.text("revision > 1"),
    ),
)

documents = sa.Table(
    "documents",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("analysis_id", sa.String(64), sa.ForeignKey("analyses.id"), index=True),
    sa.Column("study_instance_uid", UID, index=True),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("kind", sa.String(8), nullable=False),
    sa.Column("identity", sa.String(128), nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("content", sa.LargeBinary, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    # The patient's data changed since: it goes out no more.
    sa.Column("outdated", sa.Boolean, nullable=False),
    sa.Index(
        "outdated_documents",
        "study_instance_uid",
        sqlite_where=sa.text("outdated = 1"),
        postgresql_where=sa.text("outdated"),
    ),
)

deliveries = sa.Table(
    "deliveries",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("document_id", sa.Integer, sa.ForeignKey("documents.id"), nullable=False, index=True),
    sa.Column("study_instance_uid", UID, index=True),
    sa.Column("destination", sa.String(32), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("failed_tries", sa.Integer, nullable=False),
    sa.Column("errors", sa.Integer, nullable=False),
    # Tries after which the destination surely had nothing of it.
    sa.Column("not_taken", sa.Integer, nullable=False),
    sa.Column("due_at", UtcDateTime, nullable=False),
    sa.Column("last_error", sa.Text, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("queued_at", UtcDateTime, nullable=False),
    sa.Column("updated_at", UtcDateTime, nullable=False),
    sa.Index("lane", "destination", "state"),
    sa.Index("deliveries_by_state", "destination", "state", "updated_at"),
    sa.Index("deliveries_of_all_lanes", "state", "queued_at"),
    sa.Index(
        "troubled",
        "destination",
        "failed_tries",
        sqlite_where=sa.text("failed_tries > 0"),
        postgresql_where=sa.text("failed_tries > 0"),
    ),
)

reviews = sa.Table(
    "reviews",
    metadata,
    sa.Column("analysis_id", sa.String(64), sa.ForeignKey("analyses.id"), primary_key=True),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("state_since", UtcDateTime, nullable=False),
    sa.Column("acknowledged_by", sa.String(64)),
    sa.Column("signed", sa.Text),
    sa.Column("signed_at", UtcDateTime),
    sa.Index("reviews_by_state", "state", "state_since"),
)

# Images that were damaged on disk or gone: see damages.py.
damages = sa.Table(
    "damages",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("study_instance_uid", UID, nullable=False, index=True),
    sa.Column("sop_instance_uid", UID, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("found_at", UtcDateTime, nullable=False),
)

# What is counted of each analysis: see figures.py.
figures = sa.Table(
    "figures",
    metadata,
    sa.Column("analysis_id", sa.String(64), sa.ForeignKey("analyses.id"), primary_key=True),
    sa.Column("model", sa.Text),
    sa.Column("outcome", sa.String(16)),
    sa.Column("ended_at", UtcDateTime, index=True),
    sa.Column("receive_to_result_s", sa.Float),
    sa.Column("signed_at", UtcDateTime, index=True),
    sa.Column("result_to_review_s", sa.Float),
    sa.Column("accepted", sa.Integer),
    sa.Column("modified", sa.Integer),
    sa.Column("rejected", sa.Integer),
    sa.Column("missed", sa.Integer),
)

dispositions = sa.Table(
    "dispositions",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column(
        "analysis_id", sa.String(64), sa.ForeignKey("analyses.id"), nullable=False, index=True
    ),
    sa.Column("undoes", sa.Integer),
    sa.Column("reviewer", sa.String(64), nullable=False),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("disposition", sa.Text, nullable=False),
)

orders = sa.Table(
    "orders",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("placer", sa.Text, nullable=False, index=True),
    sa.Column("filler", sa.Text, nullable=False, index=True),
    sa.Column("accession_number", sa.Text, nullable=False, index=True),
    sa.Column("study_instance_uid", sa.Text, nullable=False, index=True),
    sa.Column("cancelled", sa.Boolean, nullable=False),
    sa.Column("told_at", UtcDateTime, nullable=False),
    sa.Column("content", sa.Text, nullable=False),
)

hospital_messages = sa.Table(
    "hospital_messages",
    metadata,
    sa.Column("identity", sa.String(64), primary_key=True),
    sa.Column("taken_at", UtcDateTime, nullable=False, index=True),
)

patient_merges = sa.Table(
    "patient_merges",
    metadata,
    sa.Column("patient_id", sa.Text, primary_key=True),
    sa.Column("issuer", sa.Text, primary_key=True),
    sa.Column("surviving_id", sa.Text, nullable=False, index=True),
    sa.Column("surviving_issuer", sa.Text, nullable=False),
    sa.Column("told_at", UtcDateTime, nullable=False),
)

patient_updates = sa.Table(
    "patient_updates",
    metadata,
    sa.Column("patient_id", sa.Text, primary_key=True),
    sa.Column("issuer", sa.Text, primary_key=True),
    sa.Column("told_at", UtcDateTime, nullable=False),
)

commitment_requests = sa.Table(
    "commitment_requests",
    metadata,
    sa.Column("transaction_uid", UID, primary_key=True),
    sa.Column("ae_title", sa.String(16), primary_key=True),
    sa.Column("content", sa.Text, nullable=False),
    sa.Column("asked_at", UtcDateTime, nullable=False),
    sa.Column("due_at", UtcDateTime, nullable=False, index=True),
)

commitments = sa.Table(
    "commitments",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column(
        "delivery_id", sa.Integer, sa.ForeignKey("deliveries.id"), nullable=False, index=True
    ),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("archive", sa.String(32), nullable=False),
    sa.Column("transaction_uid", UID, nullable=False, index=True),
    sa.Column("sop_instance_uid", UID, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("asked_at", UtcDateTime, nullable=False),
    sa.Column("answered_at", UtcDateTime),
    sa.Index("commitments_by_state", "archive", "state"),
)

accounts = sa.Table(
    "accounts",
    metadata,
    sa.Column("username", sa.String(64), primary_key=True),
    sa.Column("display_name", sa.String(128), nullable=False),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("password_hash", sa.String(256), nullable=False),
)

audit = sa.Table(
    "audit",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("username", sa.String(64), nullable=False),
    sa.Column("action", sa.String(64), nullable=False),
    sa.Column("study_instance_uid", UID),
    sa.Column("detail", sa.Text, nullable=False),
)

problems = sa.Table(
    "problems",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("username", sa.String(64), nullable=False),
    sa.Column("text", sa.Text, nullable=False),
)

reconciliations = sa.Table(
    "reconciliations",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("first", sa.Date, nullable=False),
    sa.Column("last", sa.Date, nullable=False),
    sa.Column("asked_by", sa.String(64), nullable=False),
    sa.Column("asked_at", UtcDateTime, nullable=False),
    sa.Column("ended_at", UtcDateTime),
    sa.Column("report", sa.Text),
)

recalls = sa.Table(
    "recalls",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("criteria", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("asked_by", sa.String(64), nullable=False),
    sa.Column("asked_at", UtcDateTime, nullable=False),
    sa.Column("signed_too", sa.Boolean, nullable=False),
    sa.Column("replacement", sa.String(208), nullable=False),
    # Whether the model of new studies is to be another, and when that is tried.
    sa.Column("switch", sa.String(16), nullable=False),
    sa.Column("due_at", UtcDateTime, nullable=False),
    sa.Column("trouble", sa.Text, nullable=False),
)

# The results of a recall, each with what is done to it: see recalls.py.
recall_items = sa.Table(
    "recall_items",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("recall_id", sa.Integer, sa.ForeignKey("recalls.id"), nullable=False, index=True),
    sa.Column(
        "analysis_id", sa.String(64), sa.ForeignKey("analyses.id"), nullable=False, index=True
    ),
    sa.Column("study_instance_uid", UID, nullable=False, index=True),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("action", sa.String(16), nullable=False),
    sa.Column("notice", sa.String(16), nullable=False),
    sa.Column("again", sa.String(16), nullable=False),
    sa.Column("due_at", UtcDateTime, nullable=False),
    sa.Column("trouble", sa.Text, nullable=False),
    # A person looked at the signed report and let it stand.
    sa.Column("confirmed_by", sa.String(64)),
    sa.Column("confirmed_at", UtcDateTime),
    sa.Index("notices_to_write", "notice", "due_at"),
    sa.Index("to_analyse_again", "again", "due_at"),
)

pauses = sa.Table(
    "pauses",
    metadata,
    sa.Column("target", sa.String(208), primary_key=True),
    sa.Column("username", sa.String(64), nullable=False),
    sa.Column("at", UtcDateTime, nullable=False),
)

facts = sa.Table(
    "facts",
    metadata,
    sa.Column("key", sa.String(128), primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)
