"""A CT series in DICOM files into a ``Volume``.

Read are CT Image Storage, one slice a file, and Enhanced and Legacy Converted Enhanced CT Image
Storage, many frames a file (PS3.3 A.3, A.38.1, A.70.1), in every transfer syntax that pydicom's
decoders know.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from phoi_models.errors import NotAnalysable, NotAnalysableReason
from phoi_models.reading.ct_image import CtImage, CtSlice, read_ct_image
from phoi_models.reading.pixels import frames_hu
from phoi_models.reading.slice_order import order_slices
from phoi_models.volume import Volume

FilesHu = Callable[[Sequence[CtImage]], Iterable[Iterable[NDArray[np.int16]]]]
"""Of each file, in order, every frame in HU, in order."""


class SliceOfFile(NamedTuple):
    """One slice: a file, and the frame of it, counted from 1; None where the file is one image."""

    path: Path
    frame: int | None


def one_by_one(images: Sequence[CtImage]) -> Iterator[Iterable[NDArray[np.int16]]]:
    """Read the files in this process, each when it is asked for."""
    return map(frames_hu, images)


def read_volume(
    paths: Sequence[Path], on_slice: Callable[[int], None] = lambda _: None
) -> tuple[Volume, tuple[SliceOfFile, ...]]:
    """Read a series. Frames that are no slices, as localizers, are left out.

    Args:
        paths: the files of one series, in any order.
        on_slice: gets the number of slices decoded so far.

    Returns:
        The volume, HU, int16, and where each slice came from, in the order of its slice axis.

    Raises:
        NotAnalysable: a file that cannot be read or decoded, values that are no Hounsfield units,
            or a stack that is not regular.
    """
    images = [read_ct_image(path) for path in paths]
    slices = [(image, about) for image in images for about in image.slices if about]
    stack = order_slices([about.place for _, about in slices])
    ordered = [slices[index] for index in stack.order]
    volume = read_stack(ordered, on_slice=on_slice)
    return volume, tuple(SliceOfFile(image.path, about.frame) for image, about in ordered)


def read_stack(
    slices: Sequence[tuple[CtImage, CtSlice]],
    frames: FilesHu = one_by_one,
    on_slice: Callable[[int], None] = lambda _: None,
) -> Volume:
    """Read the voxels of slices whose order is known.

    Args:
        slices: in the order of the slice axis.
        frames: gives the pixels of the files.
        on_slice: gets the number of slices decoded so far.

    Raises:
        NotAnalysable: see ``read_volume``; also where the slices lie in another order.
    """
    stack = order_slices([about.place for _, about in slices])
    if stack.order != tuple(range(len(slices))):
        raise NotAnalysable(
            NotAnalysableReason.INCONSISTENT_GEOMETRY,
            "the slices do not lie in the order in which the series was chosen",
        )
    hu = np.empty(stack.geometry.shape, dtype=np.int16)
    files = list(_files(slices))
    done = 0
    for (_, places), pixels in zip(files, frames([image for image, _ in files]), strict=True):
        for number, frame in enumerate(pixels, start=1):
            if number in places:
                hu[places[number]] = frame
                done += 1
                on_slice(done)
    return Volume(hu, stack.geometry)


def _files(
    slices: Sequence[tuple[CtImage, CtSlice]],
) -> Iterable[tuple[CtImage, Mapping[int, int]]]:
    """Each file with the slice index of each frame that is wanted of it."""
    wanted: dict[Path, tuple[CtImage, dict[int, int]]] = {}
    for z, (image, about) in enumerate(slices):
        wanted.setdefault(image.path, (image, {}))[1][about.frame or 1] = z
    return wanted.values()


def is_dicom(path: Path) -> bool:
    """The file is in DICOM's file format (PS3.10): "DICM" after 128 bytes."""
    try:
        with path.open("rb") as file:
            file.seek(128, os.SEEK_SET)
            return file.read(4) == b"DICM"
    except OSError:
        return False
