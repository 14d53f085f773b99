"""Chooses the series of a study and reads its voxels (port ``SeriesReader``)."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np
from phoi_models.errors import NotAnalysable, NotAnalysableReason
from phoi_models.reading.ct_image import CtImage, CtSlice, read_ct_image
from phoi_models.reading.dicom_series import FilesHu, one_by_one, read_stack
from phoi_models.reading.slice_order import order_slices
from phoi_models.volume import Volume

from phoi_edge_node.dicom.file_version import FileVersion, version_of
from phoi_edge_node.dicom.series_choice import (
    SuitableSeries,
    is_original,
    rank,
    require_coverage,
)
from phoi_edge_node.ports import ReceivedInstance, SeriesChoice, SliceRef

_REMEMBERED_FRAMES = 4096  # a few KB each
_SAME_PLACE_MM = 1.0


class _Slice(NamedTuple):
    instance: ReceivedInstance
    header: CtSlice


class DicomSeriesReader:
    """Reads the files of the instance store. Safe to use from several threads."""

    def __init__(self, root: Path, frames: FilesHu = one_by_one) -> None:
        """Read files below ``root``, to which the instances' paths are relative.

        Args:
            root: of the instance store.
            frames: gives the pixels of the files.
        """
        self._root = root
        self._frames = frames
        self._headers = _Headers()

    def choose(self, instances: Sequence[ReceivedInstance]) -> SeriesChoice:
        """The series to analyse.

        Raises:
            NotAnalysable: none can be; the detail says why for the largest of them.
        """
        suitable: list[SuitableSeries] = []
        refused: dict[str, NotAnalysable] = {}
        by_series = _by_series(instances)
        for uid, members in by_series.items():
            try:
                suitable.append(self._assess(uid, members))
            except NotAnalysable as refusal:
                refused[uid] = refusal
        if not suitable:
            raise _nothing_suitable(by_series, refused)
        ranking = rank(suitable)
        return SeriesChoice(
            series_instance_uid=ranking.best.series_instance_uid,
            slices=ranking.best.slices,
            reason=ranking.reason,
            passed_over={
                **{uid: refusal.detail for uid, refusal in refused.items()},
                **ranking.passed_over,
                **_left_out(ranking.best),
            },
        )

    def read(self, choice: SeriesChoice) -> Volume:
        """The voxels, HU, ordered by position; slice z is ``choice.slices[z]``.

        Raises:
            NotAnalysable: unreadable pixels, no Hounsfield units, or files that changed since.
        """
        images = {one.instance.path: self._header(one.instance) for one in choice.slices}
        slices = []
        for chosen in choice.slices:
            image = images[chosen.instance.path]
            about = image.slices[(chosen.frame or 1) - 1]
            if about is None:
                raise AssertionError("a frame that is no slice was chosen")
            slices.append((image, about))
        return read_stack(slices, self._frames)

    def _assess(self, uid: str, members: Sequence[ReceivedInstance]) -> SuitableSeries:
        """A series as a regular stack of slices.

        Raises:
            NotAnalysable: it is none.
        """
        if members[0].modality != "CT":
            raise NotAnalysable(NotAnalysableReason.NO_CT_IMAGES, "no CT images")
        slices = [
            _Slice(member, about)
            for member in members
            for about in self._header(member).slices
            if about
        ]
        if not slices:
            raise NotAnalysable(
                NotAnalysableReason.NO_SUITABLE_SERIES, "localizers or projections only"
            )
        try:
            whole = _stack(uid, slices)
            _require_apart(slices)
        except NotAnalysable as refusal:
            return _best_stack_within(uid, slices, refusal)
        return whole

    def _header(self, instance: ReceivedInstance) -> CtImage:
        return self._headers.of(self._root, instance)


class _Headers:
    """Headers read lately: choosing and reading look at the same ones."""

    def __init__(self) -> None:
        self._read: OrderedDict[FileVersion, CtImage] = OrderedDict()
        self._frames = 0
        self._lock = Lock()

    def of(self, root: Path, instance: ReceivedInstance) -> CtImage:
        version = version_of(root / instance.path)
        if version is None:
            return _read(root / instance.path, instance)
        with self._lock:
            image = self._read.get(version)
            if image is not None:
                self._read.move_to_end(version)
                return image
        image = _read(root / instance.path, instance)
        with self._lock:
            if version not in self._read:
                self._read[version] = image
                self._frames += len(image.slices)
            while self._frames > _REMEMBERED_FRAMES and len(self._read) > 1:
                _, oldest = self._read.popitem(last=False)
                self._frames -= len(oldest.slices)
        return image


def _read(path: Path, instance: ReceivedInstance) -> CtImage:
    try:
        return read_ct_image(path)
    except NotAnalysable as refusal:
        raise NotAnalysable(
            refusal.reason, f"instance {instance.sop_instance_uid}: {refusal.detail}"
        ) from None


def _stack(uid: str, slices: Sequence[_Slice]) -> SuitableSeries:
    """All slices as one stack.

    Raises:
        NotAnalysable: they are none.
    """
    stack = order_slices([one.header.place for one in slices])
    require_coverage(stack.geometry)
    ordered = [slices[index] for index in stack.order]
    return SuitableSeries(
        series_instance_uid=uid,
        slices=tuple(SliceRef(one.instance, one.header.frame) for one in ordered),
        geometry=stack.geometry,
        original=is_original(slices[0].header.image_type),
        kernel=slices[0].header.kernel,
    )


def _require_apart(slices: Sequence[_Slice]) -> None:
    """Acquisitions may follow one another along the patient, and not lie in between each other.

    Two of 5 mm, 2.5 mm apart, are no scan of 2.5 mm: the patient breathed, or contrast came.

    Raises:
        NotAnalysable: INCONSISTENT_GEOMETRY.
    """
    normal = slices[0].header.place.normal_lps
    ordered = sorted(slices, key=lambda one: float(normal @ one.header.place.position_lps_mm))
    blocks = [stack for stack, _ in groupby(one.header.stack for one in ordered)]
    if len(blocks) > len(set(blocks)):
        raise NotAnalysable(
            NotAnalysableReason.INCONSISTENT_GEOMETRY,
            f"slices of {len(set(blocks))} acquisitions alternate along the patient",
        )


def _left_out(best: SuitableSeries) -> Mapping[str, str]:
    """Of the chosen series itself, where it holds more than was chosen of it."""
    if not best.left_out:
        return {}
    why = f"{best.left_out} slices of other acquisitions, stacks or times in the chosen series"
    return {best.series_instance_uid: why}


def _best_stack_within(
    uid: str, slices: Sequence[_Slice], refusal: NotAnalysable
) -> SuitableSeries:
    """The best of the acquisitions, stacks or points in time that a series holds.

    Only one that is as long as all transverse slices together: half a chest is never taken for a
    whole one.

    Raises:
        NotAnalysable: ``refusal``, where the series does not say that it holds several, or none of
            them will do.
    """
    parts: dict[tuple[str, ...], list[_Slice]] = defaultdict(list)
    for one in slices:
        parts[one.header.stack].append(one)
    suitable = []
    for part in parts.values() if len(parts) > 1 else ():
        try:
            suitable.append(_stack(uid, part))
        except NotAnalysable:
            continue
    whole = [stack for stack in suitable if _is_whole(stack, slices)]
    if not whole:
        raise refusal
    best = rank(whole).best
    return replace(best, left_out=len(slices) - len(best.slices))


def _is_whole(stack: SuitableSeries, slices: Sequence[_Slice]) -> bool:
    """No slice that is parallel to those of a stack lies beyond its ends."""
    normal = np.cross(stack.geometry.axes_lps[2], stack.geometry.axes_lps[1])
    depths = [
        float(normal @ one.header.place.position_lps_mm)
        for one in slices
        if abs(float(normal @ one.header.place.normal_lps)) > np.cos(np.deg2rad(1.0))
    ]
    z = np.array([[0, 0, 0], [stack.geometry.shape[0] - 1, 0, 0]])
    ends = sorted(stack.geometry.index_to_lps(z) @ normal)
    reach = stack.geometry.spacing_mm[0] + _SAME_PLACE_MM
    return bool(min(depths) >= ends[0] - reach and max(depths) <= ends[1] + reach)


def _by_series(
    instances: Sequence[ReceivedInstance],
) -> Mapping[str, Sequence[ReceivedInstance]]:
    groups: dict[str, list[ReceivedInstance]] = defaultdict(list)
    for instance in instances:
        groups[instance.series_instance_uid].append(instance)
    return groups


def _nothing_suitable(
    by_series: Mapping[str, Sequence[ReceivedInstance]], refused: Mapping[str, NotAnalysable]
) -> NotAnalysable:
    """The refusal of the largest CT series; a person expects to read of that one."""
    series = [uid for uid, members in by_series.items() if members[0].modality == "CT"]
    if not series:
        return NotAnalysable(NotAnalysableReason.NO_CT_IMAGES, "the study has no CT images")
    largest = max(series, key=lambda uid: (len(by_series[uid]), uid))
    refusal = refused[largest]
    if len(series) == 1:
        return refusal
    return NotAnalysable(
        refusal.reason, f"{refusal.detail} (the largest of {len(series)} CT series)"
    )
