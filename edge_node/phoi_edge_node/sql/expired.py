"""Which images a study had that retention removed: without all of them a late one is no study."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import sqlalchemy as sa

from phoi_edge_node.sql import tables
from phoi_edge_node.sql.engine import Database, insert_or_replace

_EXPIRED, _INSTANCES = tables.expired_images, tables.instances


class Expired(Database):
    """The part of the store that asks for removed images again."""

    def expired_images(self, study_instance_uid: str) -> Mapping[str, frozenset[str]]:
        """SOP Instance UIDs of removed images that are not all here again, by series."""
        series: dict[str, set[str]] = defaultdict(set)
        with self._read() as connection:
            for sop, of_series in _expired(connection, study_instance_uid).items():
                series[of_series].add(sop)
        return {uid: frozenset(images) for uid, images in series.items()}


def remember_expired(connection: sa.Connection, study_instance_uid: str) -> None:
    """The images that are indexed now are about to go, after others perhaps."""
    images = _expired(connection, study_instance_uid) | _here(connection, study_instance_uid)
    lines = "\n".join(f"{series} {sop}" for sop, series in sorted(images.items()))
    late = has_late_images(sa.literal(study_instance_uid))
    row = {
        "study_instance_uid": study_instance_uid,
        "images": lines,
        "late": bool(connection.scalar(sa.select(late))),
    }
    insert_or_replace(connection, _EXPIRED, row)


def lacks_expired(connection: sa.Connection, study_instance_uid: str) -> bool:
    """Are images gone that the study had? Notes whether others came late; forgets what is back."""
    expired = _expired(connection, study_instance_uid)
    if not expired:
        return False
    here = _here(connection, study_instance_uid)
    row = _EXPIRED.c.study_instance_uid == study_instance_uid
    if expired.keys() <= here.keys():
        connection.execute(_EXPIRED.delete().where(row))
        return False
    if here.keys() - expired.keys():
        connection.execute(_EXPIRED.update().where(row).values(late=True))
    return True


def has_late_images(study_instance_uid: sa.ColumnElement[str]) -> sa.ColumnElement[bool]:
    """New images came after the others had been removed, and those did not come back."""
    return sa.exists().where(_EXPIRED.c.study_instance_uid == study_instance_uid, _EXPIRED.c.late)


def _expired(connection: sa.Connection, study_instance_uid: str) -> dict[str, str]:
    """Series by SOP Instance UID."""
    lines = connection.scalar(
        sa.select(_EXPIRED.c.images).where(_EXPIRED.c.study_instance_uid == study_instance_uid)
    )
    pairs = (line.split(" ") for line in (lines or "").splitlines())
    return {sop: series for series, sop in pairs}


def _here(connection: sa.Connection, study_instance_uid: str) -> dict[str, str]:
    """Series by SOP Instance UID."""
    query = sa.select(_INSTANCES.c.sop_instance_uid, _INSTANCES.c.series_instance_uid)
    rows = connection.execute(query.where(_INSTANCES.c.study_instance_uid == study_instance_uid))
    return {row[0]: row[1] for row in rows}
