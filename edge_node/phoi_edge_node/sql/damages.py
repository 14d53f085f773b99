"""Images that were lost from the disk, and whether they came back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime

import sqlalchemy as sa

from phoi_edge_node.recalled import Again
from phoi_edge_node.sql import tables
from phoi_edge_node.sql.engine import Database
from phoi_edge_node.store import DamagedInstance
from phoi_edge_node.study import (
    ANALYSIS,
    STUDY,
    AnalysisEvent,
    AnalysisState,
    StudyEvent,
    StudyState,
    after,
    ignores,
)

_STUDIES, _INSTANCES = tables.studies, tables.instances
_ANALYSES, _DAMAGES = tables.analyses, tables.damages
_NOT_ENDED = (AnalysisState.QUEUED, AnalysisState.RUNNING)
_WITHOUT_RESULT = (AnalysisState.SUPERSEDED, AnalysisState.WITHDRAWN)


class Damages(Database):
    """The part of the store that looking after images uses."""

    def lose_instances(self, study_instance_uid: str, damaged: Mapping[str, str]) -> None:
        """Forget images that are not on the disk any more, so that they are asked for again."""
        here = _STUDIES.c.study_instance_uid == study_instance_uid
        now = self._clock.now()
        with self._write() as connection:
            lock = sa.select(_STUDIES.c.state).where(here).with_for_update()
            state = StudyState(connection.execute(lock).scalar_one())
            for uid, kind in damaged.items():
                _lose(connection, study_instance_uid, uid, kind, now)
            if ignores(STUDY, state, StudyEvent.INSTANCE_LOST):
                return
            following = after(STUDY, state, StudyEvent.INSTANCE_LOST)
            if following is not state:
                moved = {"state": following, "state_since": now, "receiving_since": now}
                connection.execute(_STUDIES.update().where(here).values(moved))
            _supersede_what_has_not_ended(connection, study_instance_uid, now)

    def damages(self, study_instance_uid: str) -> Sequence[DamagedInstance]:
        """Images of a study that were lost, oldest first."""
        present = sa.exists().where(_INSTANCES.c.sop_instance_uid == _DAMAGES.c.sop_instance_uid)
        query = (
            sa.select(_DAMAGES, present.label("back"))
            .where(_DAMAGES.c.study_instance_uid == study_instance_uid)
            .order_by(_DAMAGES.c.id)
        )
        with self._read() as connection:
            return [
                DamagedInstance(row.sop_instance_uid, row.kind, row.found_at, bool(row.back))
                for row in connection.execute(query)
            ]

    def next_complete_study(self, after_uid: str) -> str | None:
        """The next in the order of UIDs."""
        uid = _STUDIES.c.study_instance_uid
        query = sa.select(uid).where(uid > after_uid, _STUDIES.c.state == StudyState.COMPLETE)
        with self._read() as connection:
            return connection.scalar(query.order_by(uid).limit(1))


def images_of(connection: sa.Connection, study_instance_uid: str) -> str:
    """Digest of all images of a study, those that were lost from the disk too: hex SHA-256."""
    known: dict[str, str] = {}
    for table in (_DAMAGES, _INSTANCES):  # what came back counts as it came
        rows = connection.execute(
            sa.select(table.c.sop_instance_uid, table.c.sha256).where(
                table.c.study_instance_uid == study_instance_uid
            )
        )
        known |= {row.sop_instance_uid: row.sha256 for row in rows}
    lines = "\n".join(f"{uid} {digest}" for uid, digest in sorted(known.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def is_known(connection: sa.Connection, study_instance_uid: str) -> bool:
    """The latest analysis has ended and is about the images that there are, or were."""
    query = (
        sa.select(_ANALYSES.c.id, _ANALYSES.c.state, _ANALYSES.c.images)
        .where(_ANALYSES.c.study_instance_uid == study_instance_uid)
        .order_by(_ANALYSES.c.revision.desc())
        .limit(1)
    )
    latest = connection.execute(query).one_or_none()
    if latest is None or latest.state in {*_NOT_ENDED, *_WITHOUT_RESULT}:
        return False
    if _waits_for_images(connection, latest.id):
        return False
    return bool(latest.images == images_of(connection, study_instance_uid))


def _waits_for_images(connection: sa.Connection, analysis_id: str) -> bool:
    """A recall is to have it analysed again, signed or not, and its images had been removed."""
    items = tables.recall_items
    query = sa.select(items.c.id).where(
        items.c.analysis_id == analysis_id, items.c.again == Again.NO_IMAGES
    )
    return connection.execute(query.limit(1)).first() is not None


def _lose(
    connection: sa.Connection, study_instance_uid: str, uid: str, kind: str, now: datetime
) -> None:
    here = _INSTANCES.c.sop_instance_uid == uid
    digest = connection.scalar(sa.select(_INSTANCES.c.sha256).where(here))
    if digest is None:
        return
    connection.execute(_INSTANCES.delete().where(here))
    connection.execute(
        _DAMAGES.insert().values(
            study_instance_uid=study_instance_uid,
            sop_instance_uid=uid,
            sha256=digest,
            kind=kind,
            found_at=now,
        )
    )


def _supersede_what_has_not_ended(
    connection: sa.Connection, study_instance_uid: str, now: datetime
) -> None:
    """The study's next completion queues it anew."""
    for state in _NOT_ENDED:
        connection.execute(
            _ANALYSES.update()
            .where(_ANALYSES.c.study_instance_uid == study_instance_uid)
            .where(_ANALYSES.c.state == state)
            .values(state=after(ANALYSIS, state, AnalysisEvent.SUPERSEDE), state_since=now)
        )
