"""Reviews and their dispositions."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from phoi_edge_node.codec import from_json, to_json
from phoi_edge_node.desk import Judgement
from phoi_edge_node.errors import Conflict, ReviewConflict
from phoi_edge_node.ports import ReportStatus
from phoi_edge_node.result import Correction, Disposition, Patient, SignedReview, Verdict
from phoi_edge_node.sql import tables
from phoi_edge_node.sql.analyses import patient_of
from phoi_edge_node.sql.deliveries import drop_dead_letters, enqueue
from phoi_edge_node.sql.engine import Database
from phoi_edge_node.sql.figures import count_signed
from phoi_edge_node.store import Outgoing, StoredReview
from phoi_edge_node.study import REVIEW, ReviewEvent, ReviewState, after, ignores


class Reviews(Database):
    """The part of the store that reviewing uses."""

    def review(self, analysis_id: str) -> StoredReview:
        """The review of an analysis; an open, empty one while there is no result."""
        nothing = StoredReview(ReviewState.OPEN, {}, (), None)
        return self.reviews([analysis_id]).get(analysis_id, nothing)

    def reviews(self, analysis_ids: Collection[str]) -> Mapping[str, StoredReview]:
        """The reviews of several analyses."""
        table, history = tables.reviews, tables.dispositions
        ids = list(analysis_ids)
        with self._read() as connection:
            reviews = connection.execute(sa.select(table).where(table.c.analysis_id.in_(ids))).all()
            rows = connection.execute(
                sa.select(history).where(history.c.analysis_id.in_(ids)).order_by(history.c.id)
            ).all()
        by_analysis: dict[str, list[sa.Row[Any]]] = {}
        for row in rows:
            by_analysis.setdefault(row.analysis_id, []).append(row)
        return {r.analysis_id: _review(r, by_analysis.get(r.analysis_id, [])) for r in reviews}

    def decide(
        self,
        analysis_id: str,
        tracking_uid: str,
        verdict: Verdict,
        reviewer: str,
        reason: str,
        correction: Correction,
    ) -> None:
        """Add a disposition."""
        now = self._clock.now()
        disposition = Disposition(tracking_uid, verdict, reviewer, now, reason, correction)
        with self._write() as connection:
            _move(connection, analysis_id, ReviewEvent.DECIDE, now)
            self._audit(
                connection, reviewer, "decide", _study_uid(connection, analysis_id), verdict.value
            )
            connection.execute(
                tables.dispositions.insert().values(
                    analysis_id=analysis_id,
                    reviewer=reviewer,
                    at=now,
                    disposition=to_json(disposition),
                )
            )

    def undo(self, analysis_id: str, reviewer: str) -> Disposition | None:
        """Withdraw the latest standing disposition; None if there is none."""
        table = tables.dispositions
        with self._write() as connection:
            _lock(connection, analysis_id)
            rows = connection.execute(
                sa.select(table).where(table.c.analysis_id == analysis_id).order_by(table.c.id)
            ).all()
            standing = _standing(rows)
            if not standing:
                return None
            last = standing[-1]
            _move(connection, analysis_id, ReviewEvent.UNDO, self._clock.now())
            self._audit(connection, reviewer, "undo", _study_uid(connection, analysis_id))
            connection.execute(
                table.insert().values(
                    analysis_id=analysis_id,
                    undoes=last.id,
                    reviewer=reviewer,
                    at=self._clock.now(),
                    disposition=last.disposition,
                )
            )
        return from_json(last.disposition, Disposition)

    def sign(
        self,
        analysis_id: str,
        signed: SignedReview,
        outgoing: Sequence[Outgoing],
        patient: Patient | None = None,
    ) -> None:
        """Close the review and queue its documents; supersedes earlier signed reviews."""
        table, analyses = tables.reviews, tables.analyses
        with self._write() as connection:
            uid = _study_uid(connection, analysis_id)
            holder = patient_of(connection, uid)  # holds the study first, as a recall does
            if patient is not None and holder != patient:
                raise ReviewConflict(Conflict.CHANGED)
            _lock(connection, analysis_id)
            _require_standing(connection, analysis_id, signed)
            _move(
                connection,
                analysis_id,
                ReviewEvent.SIGN,
                signed.signed_at,
                signed=to_json(signed),
                signed_at=signed.signed_at,
            )
            count_signed(connection, analysis_id, signed)
            analysis = connection.execute(
                sa.select(analyses.c.study_instance_uid, analyses.c.revision).where(
                    analyses.c.id == analysis_id
                )
            ).one()
            earlier = connection.scalars(
                sa.select(table.c.analysis_id)
                .join(analyses)
                .where(analyses.c.study_instance_uid == analysis.study_instance_uid)
                .where(analyses.c.revision < analysis.revision)
                .where(table.c.state == ReviewState.SIGNED)
            ).all()
            for other in earlier:
                _move(connection, other, ReviewEvent.REPLACE, signed.signed_at)
            self._audit(connection, signed.reviewer, "sign", analysis.study_instance_uid)
            enqueue(
                connection,
                analysis_id,
                analysis.study_instance_uid,
                analysis.revision,
                _status(connection, analysis.study_instance_uid, analysis_id),
                outgoing,
                signed.signed_at,
            )
            drop_dead_letters(connection, analysis.study_instance_uid, signed.signed_at)

    def acknowledge(self, analysis_id: str, username: str) -> None:
        """Close the review of a result that has nothing to sign: somebody has seen it."""
        now = self._clock.now()
        with self._write() as connection:
            event = ReviewEvent.ACKNOWLEDGE
            if _move(connection, analysis_id, event, now, acknowledged_by=username):
                uid = _study_uid(connection, analysis_id)
                self._audit(connection, username, "acknowledge", uid)
                drop_dead_letters(connection, uid, now, keep=analysis_id)


def _status(connection: sa.Connection, study_instance_uid: str, analysis_id: str) -> ReportStatus:
    """Final, but a correction where another signed report of the study went out before."""
    reviews, analyses = tables.reviews, tables.analyses
    before = (
        sa.select(reviews.c.analysis_id)
        .join(analyses)
        .where(analyses.c.study_instance_uid == study_instance_uid)
        .where(reviews.c.signed.is_not(None), reviews.c.analysis_id != analysis_id)
    )
    signed = connection.execute(before.limit(1)).first()
    return ReportStatus.CORRECTED if signed else ReportStatus.FINAL


def _move(
    connection: sa.Connection,
    analysis_id: str,
    event: ReviewEvent,
    now: datetime,
    **values: object,
) -> bool:
    """Take a review along its table of states; False where the event is ignored."""
    table = tables.reviews
    here = table.c.analysis_id == analysis_id
    present: str = connection.execute(
        sa.select(table.c.state).where(here).with_for_update()
    ).scalar_one()
    state = ReviewState(present)
    if ignores(REVIEW, state, event):
        return False
    following = after(REVIEW, state, event)
    if following is not state:
        values |= {"state": following, "state_since": now}
    if values:
        connection.execute(table.update().where(here).values(**values))
    return True


def _lock(connection: sa.Connection, analysis_id: str) -> None:
    """Hold the review until the transaction ends: what is read of it from here on stands."""
    table = tables.reviews
    connection.execute(
        sa.select(table.c.state).where(table.c.analysis_id == analysis_id).with_for_update()
    )


def _study_uid(connection: sa.Connection, analysis_id: str) -> str:
    table = tables.analyses
    uid: str = connection.execute(
        sa.select(table.c.study_instance_uid).where(table.c.id == analysis_id)
    ).scalar_one()
    return uid


def _require_standing(connection: sa.Connection, analysis_id: str, signed: SignedReview) -> None:
    """What is signed must be what stands, also if a colleague decided a moment ago."""
    table = tables.dispositions
    rows = connection.execute(
        sa.select(table).where(table.c.analysis_id == analysis_id).order_by(table.c.id)
    ).all()
    standing = [from_json(row.disposition, Disposition) for row in _standing(rows)]
    if {d.tracking_uid: d for d in standing} != {d.tracking_uid: d for d in signed.dispositions}:
        raise ReviewConflict(Conflict.CHANGED_BY_COLLEAGUE)


def _standing(rows: Sequence[sa.Row[Any]]) -> list[sa.Row[Any]]:
    undone = {row.undoes for row in rows if row.undoes is not None}
    return [row for row in rows if row.undoes is None and row.id not in undone]


def _review(row: sa.Row[Any], rows: Sequence[sa.Row[Any]]) -> StoredReview:
    standing = [from_json(r.disposition, Disposition) for r in _standing(rows)]
    undone_by = {r.undoes: r.reviewer for r in rows if r.undoes is not None}
    return StoredReview(
        state=ReviewState(row.state),
        current={d.tracking_uid: d for d in standing},
        history=tuple(
            Judgement(from_json(r.disposition, Disposition), undone_by.get(r.id, ""))
            for r in rows
            if r.undoes is None
        ),
        signed=None if row.signed is None else from_json(row.signed, SignedReview),
        acknowledged_by=row.acknowledged_by or "",
        state_since=row.state_since,
    )
