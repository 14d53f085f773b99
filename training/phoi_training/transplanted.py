"""The second test of a detector: real nodules set into chests in which it has never seen them.

Planted nodules come from the generator that trained the network; these do not. Evaluation only:
who hands in lesions or hosts that the network was trained on measures nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from phoi_models.errors import NotAnalysable
from phoi_models.transplant import Lesion, NotTransplantable, transplant

from phoi_training.background import Background, Mark


def lesions_of(chests: Iterable[Background]) -> tuple[list[Lesion], list[str]]:
    """Cut out all certain nodules.

    Args:
        chests: with marks; their lungs bound what belongs to a nodule.

    Returns:
        The lesions, and for each nodule that cannot be cut free a line that says why.
    """
    lesions, refused = [], []
    for chest in chests:
        for mark in chest.nodules:
            try:
                lesions.append(Lesion.cut(chest.volume, chest.lungs, *mark.ball))
            except (NotTransplantable, NotAnalysable) as error:
                refused.append(f"{chest.name}, {mark.diameter_mm:.0f} mm: {error}")
    return lesions, refused


def transplanted_copy(
    host: Background, lesions: Sequence[Lesion], rng: np.random.Generator
) -> tuple[Background, list[Lesion]]:
    """A host with real nodules of others, unscaled, turned and mirrored at random.

    Args:
        host: its own marks become uncertain, so that they count neither way.
        lesions: each is set in once, unless no place is found for it.
        rng: places and turns.

    Returns:
        The new chest, whose certain marks are the lesions, and these lesions, in the same order.
    """
    marks = [replace(mark, certain=False) for mark in host.marks]
    volume, placed = host.volume, []
    for lesion in lesions:
        avoid = [mark.ball for mark in marks]
        moved = transplant(volume, host.lungs, lesion, rng=rng, avoid=avoid, zoom=(1.0, 1.0))
        if moved is not None:
            volume, center, diameter = moved
            marks.append(Mark(center, diameter))
            placed.append(lesion)
    return replace(host, volume=volume, marks=tuple(marks)), placed
