"""Storage commitment: what peers ask of us, and what we asked of archives."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta

import sqlalchemy as sa

from phoi_edge_node.codec import from_json, to_json
from phoi_edge_node.commitment import (
    ANSWER_WITHIN,
    MOST_OWED,
    CommitmentReport,
    CommitmentRequest,
    CommitmentState,
    KeptInstance,
    SentDocument,
)
from phoi_edge_node.ports import Document, DocumentKind
from phoi_edge_node.sql import tables
from phoi_edge_node.sql.engine import Database, due
from phoi_edge_node.study import DeliveryState

_OWED, _ASKED = tables.commitment_requests, tables.commitments
_AT_ONCE = 500  # values in one list of a query


class Commitments(Database):
    """The part of the store that storage commitment uses."""

    def owe_report(self, request: CommitmentRequest) -> bool:
        """Keep a request until its report has arrived; False if too many are kept already."""
        same = _request_of(request)
        with self._write() as connection:
            connection.execute(_OWED.delete().where(same))
            count = connection.scalar(sa.select(sa.func.count()).select_from(_OWED)) or 0
            if count >= MOST_OWED:
                return False
            now = self._clock.now()
            connection.execute(
                _OWED.insert().values(
                    transaction_uid=request.transaction_uid,
                    ae_title=request.ae_title,
                    content=to_json(request),
                    asked_at=now,
                    due_at=now,
                )
            )
        return True

    def next_owed_report(self) -> CommitmentRequest | None:
        """The request that is due and waits longest."""
        query = (
            sa.select(_OWED.c.content)
            .where(due(_OWED.c.due_at, self._clock.now()))
            .order_by(_OWED.c.due_at)
            .limit(1)
        )
        with self._read() as connection:
            content = connection.scalar(query)
        return None if content is None else from_json(content, CommitmentRequest)

    def settle_report(self, request: CommitmentRequest, retry_after: timedelta | None) -> None:
        """The report arrived or was given up (None), or is to be tried again."""
        same = _request_of(request)
        with self._write() as connection:
            if retry_after is None:
                connection.execute(_OWED.delete().where(same))
                return
            connection.execute(
                _OWED.update()
                .where(same)
                .values(content=to_json(request), due_at=self._clock.now() + retry_after)
            )

    def kept_instances(self, sop_instance_uids: Collection[str]) -> Mapping[str, KeptInstance]:
        """Those that are in the index, by SOP Instance UID."""
        table, uids = tables.instances, list(sop_instance_uids)
        found: dict[str, KeptInstance] = {}
        with self._read() as connection:
            for start in range(0, len(uids), _AT_ONCE):
                query = sa.select(table).where(
                    table.c.sop_instance_uid.in_(uids[start : start + _AT_ONCE])
                )
                for row in connection.execute(query):
                    kept = KeptInstance(row.sop_class_uid, row.path, row.sha256)
                    found[row.sop_instance_uid] = kept
        return found

    def uncommitted(self, archive: str) -> Sequence[SentDocument]:
        """Of one study whose documents have all been delivered: those to ask about."""
        deliveries, documents = tables.deliveries, tables.documents
        to_ask = self._to_ask(archive)
        with self._read() as connection:
            study = connection.scalar(
                sa.select(deliveries.c.study_instance_uid)
                .where(to_ask)
                .order_by(deliveries.c.updated_at)
                .limit(1)
            )
            rows = connection.execute(
                sa.select(
                    deliveries.c.id,
                    deliveries.c.attempts,
                    documents.c.kind,
                    documents.c.identity,
                    documents.c.content,
                )
                .join(documents)
                .where(to_ask, deliveries.c.study_instance_uid == study)
                .order_by(deliveries.c.id)
            ).all()
        return [
            SentDocument(
                row.id,
                row.attempts,
                Document(DocumentKind(row.kind), row.identity, row.content),
            )
            for row in rows
        ]

    def _to_ask(self, archive: str) -> sa.ColumnElement[bool]:
        """Delivered, not rejected, nothing of its study on its way, and not asked about since."""
        table = tables.deliveries
        other = table.alias("other")
        on_its_way = sa.exists().where(
            other.c.destination == archive,
            other.c.study_instance_uid == table.c.study_instance_uid,
            other.c.state.in_((DeliveryState.PENDING, DeliveryState.SENDING)),
        )
        # An archive may hide what a later note rejected, and would have it sent once more.
        note = tables.documents.alias("note")
        rejected = sa.exists().where(
            other.c.destination == archive,
            other.c.study_instance_uid == table.c.study_instance_uid,
            other.c.id > table.c.id,
            other.c.state == DeliveryState.DELIVERED,
            note.c.id == other.c.document_id,
            note.c.kind == DocumentKind.REJECTION_NOTE,
        )
        answered_late = self._clock.now() - ANSWER_WITHIN
        asked = sa.exists().where(
            _ASKED.c.delivery_id == table.c.id,
            _ASKED.c.attempts == table.c.attempts,
            sa.or_(
                _ASKED.c.state.in_((CommitmentState.COMMITTED, CommitmentState.FAILED)),
                sa.and_(_ASKED.c.state == CommitmentState.ASKED, _ASKED.c.asked_at > answered_late),
            ),
        )
        return sa.and_(
            table.c.destination == archive,
            table.c.state == DeliveryState.DELIVERED,
            table.c.study_instance_uid.is_not(None),
            ~on_its_way,
            ~rejected,
            ~asked,
        )

    def commitment_asked(
        self, archive: str, transaction_uid: str, documents: Sequence[SentDocument]
    ) -> None:
        """Before the archive is asked: its answer may be faster than its acknowledgement."""
        now = self._clock.now()
        with self._write() as connection:
            connection.execute(
                _ASKED.update()
                .where(
                    _ASKED.c.delivery_id.in_([sent.delivery_id for sent in documents]),
                    _ASKED.c.state == CommitmentState.ASKED,
                )
                .values(state=CommitmentState.UNANSWERED)
            )
            connection.execute(
                _ASKED.insert(),
                [
                    {
                        "delivery_id": sent.delivery_id,
                        "attempts": sent.attempts,
                        "archive": archive,
                        "transaction_uid": transaction_uid,
                        "sop_instance_uid": sent.document.identity,
                        "state": CommitmentState.ASKED,
                        "asked_at": now,
                    }
                    for sent in documents
                ],
            )

    def commitment_not_asked(self, transaction_uid: str) -> None:
        """It could not be asked: ask another time."""
        with self._write() as connection:
            connection.execute(_ASKED.delete().where(_ASKED.c.transaction_uid == transaction_uid))

    def commitment_answered(self, archive: str, report: CommitmentReport) -> bool:
        """Record an archive's report; False if it was never asked that."""
        of_transaction = sa.and_(
            _ASKED.c.transaction_uid == report.transaction_uid, _ASKED.c.archive == archive
        )
        failed = {reference.sop_instance_uid for reference, _ in report.failed}
        committed = {reference.sop_instance_uid for reference in report.committed} - failed
        outcomes = ((CommitmentState.FAILED, failed), (CommitmentState.COMMITTED, committed))
        with self._write() as connection:
            asked = connection.execute(
                sa.select(_ASKED.c.id, _ASKED.c.sop_instance_uid).where(of_transaction)
            ).all()
            for state, uids in outcomes:
                connection.execute(
                    _ASKED.update()
                    .where(_ASKED.c.id.in_([r.id for r in asked if r.sop_instance_uid in uids]))
                    .values(state=state, answered_at=self._clock.now())
                )
        return bool(asked)

    def failed_commitments(self) -> Sequence[int]:
        """Deliveries that are to be sent again."""
        query = sa.select(_ASKED.c.delivery_id).where(_ASKED.c.state == CommitmentState.FAILED)
        with self._read() as connection:
            return list(connection.scalars(query.distinct().limit(_AT_ONCE)))

    def commitment_sent_again(self, delivery_id: int) -> None:
        """It is on its way again, or cannot be sent again."""
        with self._write() as connection:
            connection.execute(
                _ASKED.update()
                .where(
                    _ASKED.c.delivery_id == delivery_id, _ASKED.c.state == CommitmentState.FAILED
                )
                .values(state=CommitmentState.SENT_AGAIN)
            )

    def commitment_counts(self) -> Mapping[tuple[str, CommitmentState], int]:
        """Documents by archive and state."""
        query = sa.select(_ASKED.c.archive, _ASKED.c.state, sa.func.count().label("number"))
        with self._read() as connection:
            rows = connection.execute(query.group_by(_ASKED.c.archive, _ASKED.c.state)).all()
        return {(row.archive, CommitmentState(row.state)): row.number for row in rows}


def _request_of(request: CommitmentRequest) -> sa.ColumnElement[bool]:
    return sa.and_(
        _OWED.c.transaction_uid == request.transaction_uid, _OWED.c.ae_title == request.ae_title
    )
