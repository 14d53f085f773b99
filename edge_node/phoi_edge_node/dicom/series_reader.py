"""Chooses the series of a study and reads its voxels (port ``SeriesReader``)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from phoi_models.errors import NotAnalysable, NotAnalysableReason
from phoi_models.reading.dicom_series import PLACE_KEYWORDS, read_volume, slice_place
from phoi_models.reading.slice_order import order_slices
from phoi_models.volume import Volume
from pydicom import Dataset, dcmread

from phoi_edge_node.dicom.series_choice import (
    SuitableSeries,
    is_original,
    is_slice_image,
    rank,
    require_coverage,
)
from phoi_edge_node.ports import ReceivedInstance, SeriesChoice

_KEYWORDS = [*PLACE_KEYWORDS, "ImageType", "ConvolutionKernel"]


class DicomSeriesReader:
    """Reads the files of the instance store."""

    def __init__(self, root: Path) -> None:
        """Read files below ``root``, to which the instances' paths are relative."""
        self._root = root

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
            instances=ranking.best.instances,
            reason=ranking.reason,
            passed_over={
                **{uid: refusal.detail for uid, refusal in refused.items()},
                **ranking.passed_over,
            },
        )

    def read(self, choice: SeriesChoice) -> Volume:
        """The voxels, HU, ordered by position; slice z is ``choice.instances[z]``.

        Raises:
            NotAnalysable: unreadable pixels, no Hounsfield units, or files that changed since.
        """
        paths = [self._root / instance.path for instance in choice.instances]
        volume, ordered = read_volume(paths)
        if list(ordered) != paths:
            raise NotAnalysable(
                NotAnalysableReason.INCONSISTENT_GEOMETRY,
                "the files are not those from which the series was chosen",
            )
        return volume

    def _assess(self, uid: str, members: Sequence[ReceivedInstance]) -> SuitableSeries:
        """A series as a regular stack of slices.

        Raises:
            NotAnalysable: it is none.
        """
        if members[0].modality != "CT":
            raise NotAnalysable(NotAnalysableReason.NO_CT_IMAGES, "no CT images")
        headers = [(member, self._header(member)) for member in members]
        slices = [(m, header) for m, header in headers if is_slice_image(_image_type(header))]
        if not slices:
            raise NotAnalysable(
                NotAnalysableReason.NO_SUITABLE_SERIES, "localizers or projections only"
            )
        stack = order_slices([slice_place(header) for _, header in slices])
        require_coverage(stack.geometry)
        first = slices[0][1]
        return SuitableSeries(
            series_instance_uid=uid,
            instances=tuple(slices[index][0] for index in stack.order),
            geometry=stack.geometry,
            original=is_original(_image_type(first)),
            kernel=_kernel(first),
        )

    def _header(self, instance: ReceivedInstance) -> Dataset:
        try:
            path = self._root / instance.path
            return dcmread(path, stop_before_pixels=True, specific_tags=list(_KEYWORDS))
        except Exception as error:
            # A damaged file makes the parser raise nearly anything, with header values in it.
            raise NotAnalysable(
                NotAnalysableReason.UNREADABLE_PIXELS,
                f"instance {instance.sop_instance_uid} cannot be read ({type(error).__name__})",
            ) from None


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


def _image_type(header: Dataset) -> Sequence[str]:
    value = header.get("ImageType") or ()
    return (value,) if isinstance(value, str) else tuple(value)


def _kernel(header: Dataset) -> str:
    """Convolution Kernel (0018,1210) may have several values; the first names it."""
    value = header.get("ConvolutionKernel") or ""
    return value if isinstance(value, str) else str(next(iter(value), ""))
