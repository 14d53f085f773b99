"""Which images are still needed, and which are here."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import islice

import sqlalchemy as sa

from phoi_edge_node.recalled import Again, Notice
from phoi_edge_node.sql import tables
from phoi_edge_node.sql.expired import Expired, remember_expired
from phoi_edge_node.store import SettledStudy
from phoi_edge_node.study import (
    STUDY,
    AnalysisState,
    DeliveryState,
    ReviewState,
    StudyEvent,
    StudyState,
    after,
)

_STUDIES, _INSTANCES = tables.studies, tables.instances
_ANALYSES, _REVIEWS, _DELIVERIES = tables.analyses, tables.reviews, tables.deliveries

_ARRIVED_OR_REPLACED = (DeliveryState.DELIVERED, DeliveryState.SUPERSEDED)
_NOT_ENDED = (AnalysisState.QUEUED, AnalysisState.RUNNING)
_RECALLED = tables.recall_items
_PATHS_A_QUERY = 500


class Keeping(Expired):
    """The part of the store that retention and recovery use."""

    def instance_counts(self) -> Mapping[str, int]:
        """How many instances of each study are indexed, by Study Instance UID; none: left out."""
        uid = _INSTANCES.c.study_instance_uid
        query = sa.select(uid, sa.func.count()).group_by(uid)
        with self._read() as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    def indexed(self, paths: Collection[str]) -> Collection[str]:
        """Which of these paths are of indexed instances."""
        found: set[str] = set()
        rest = iter(paths)
        with self._read() as connection:
            while part := list(islice(rest, _PATHS_A_QUERY)):
                query = sa.select(_INSTANCES.c.path).where(_INSTANCES.c.path.in_(part))
                found.update(connection.scalars(query))
        return found

    def settled_studies(self) -> Sequence[SettledStudy]:
        """Studies whose images nothing needs any more."""
        uid = _STUDIES.c.study_instance_uid
        ended = (
            sa.select(sa.func.max(_ANALYSES.c.finished_at))
            .where(_ANALYSES.c.study_instance_uid == uid)
            .scalar_subquery()
        )
        delivered = (
            sa.select(sa.func.max(_DELIVERIES.c.updated_at))
            .where(_DELIVERIES.c.study_instance_uid == uid)
            .scalar_subquery()
        )
        signed = sa.exists().where(
            _ANALYSES.c.study_instance_uid == uid,
            _REVIEWS.c.analysis_id == _ANALYSES.c.id,
            _REVIEWS.c.state == ReviewState.SIGNED,
        )
        last = _STUDIES.c.last_received_at
        query = sa.select(uid, last, ended, delivered, signed).where(*_nothing_needs_images())
        with self._read() as connection:
            rows = connection.execute(query).all()
        return [
            SettledStudy(row[0], max(filter(None, row[1:4])), bool(row[4]))
            for row in rows
            if row[2] is not None
        ]

    def expire_study(self, study_instance_uid: str) -> bool:
        """Forget the images of a study, unless something needs them again."""
        here = _STUDIES.c.study_instance_uid == study_instance_uid
        lock = sa.select(_STUDIES.c.state).where(here).with_for_update()
        with self._write() as connection:
            connection.execute(lock)
            needless = sa.select(_STUDIES.c.state).where(here, *_nothing_needs_images())
            state = connection.scalar(needless)
            if state is None:
                return False
            state = after(STUDY, StudyState(state), StudyEvent.EXPIRE)
            connection.execute(
                _STUDIES.update().where(here).values(state=state, state_since=self._clock.now())
            )
            remember_expired(connection, study_instance_uid)
            connection.execute(
                _INSTANCES.delete().where(_INSTANCES.c.study_instance_uid == study_instance_uid)
            )
        return True


def _nothing_needs_images() -> tuple[sa.ColumnElement[bool], ...]:
    """It is complete, its revisions have ended, every document arrived, and no recall waits."""
    uid = _STUDIES.c.study_instance_uid
    unfinished = sa.exists().where(
        _ANALYSES.c.study_instance_uid == uid, _ANALYSES.c.state.in_(_NOT_ENDED)
    )
    undelivered = sa.exists().where(
        _DELIVERIES.c.study_instance_uid == uid,
        _DELIVERIES.c.state.not_in(_ARRIVED_OR_REPLACED),
    )
    recalled = sa.exists().where(
        _RECALLED.c.study_instance_uid == uid,
        sa.or_(_RECALLED.c.again == Again.WAITING, _RECALLED.c.notice == Notice.WAITING),
    )
    return _STUDIES.c.state == StudyState.COMPLETE, ~unfinished, ~undelivered, ~recalled
