"""The model card of an imported model: what is known, and that nothing was validated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from phoi_models.bundle import AnchorBoxParameters, AnyParameters

_TOLD = ("description", "authors", "copyright", "data_source", "intended_use")


@dataclass(frozen=True)
class Origin:
    """Where a model comes from, and what was checked.

    Attributes:
        what: kind of the source, and the name and SHA-256 of the file that held the weights.
        told: what the source says of itself, by the keys of MONAI's metadata.
        checks: one sentence for each.
    """

    what: str
    told: Mapping[str, Any] = field(default_factory=dict)
    checks: Sequence[str] = ()


def imported_card(parameters: AnyParameters, origin: Origin) -> str:
    """What a person must know before trusting the model, in Markdown."""
    told = [f"- {key.replace('_', ' ')}: {origin.told[key]}" for key in _TOLD if key in origin.told]
    points = [
        f"- {name}: probability >= {point.probability:g}"
        for name, point in sorted(parameters.operating_points.items())
    ]
    return "\n".join(
        [
            f"# {parameters.name} {parameters.version}",
            "",
            "Imported into Phoi. **Nothing was validated here**: no sensitivity, no number of"
            " false marks, no group of patients. Its score is no calibrated probability, and the"
            " thresholds below were set by whoever imported it. For research and evaluation:"
            " **not a cleared medical device**. Measure it on your own cases with"
            " `phoi evaluate` before you show its marks to anyone.",
            "",
            "## Where it comes from",
            "",
            f"- {origin.what}",
            *told,
            "- licence: see `LICENSE`",
            "",
            "## What was checked",
            "",
            *[f"- {check}" for check in origin.checks],
            "",
            "## How it is run",
            "",
            *_how(parameters),
            "",
            "## Operating points, not validated",
            "",
            *points,
            "",
        ]
    )


def _how(parameters: AnyParameters) -> list[str]:
    low, high = parameters.window_hu
    shape = " x ".join(str(n) for n in parameters.patch_shape)
    common = f"HU {low:g} to {high:g} become 0 to 1"
    if not isinstance(parameters, AnchorBoxParameters):
        return [
            f"- {parameters.kind}: {parameters.spacing_mm:g} mm voxels, axes (z, y, x) to head,"
            f" back and left; {common}; patches of {shape} voxels"
        ]
    spacing = " x ".join(f"{mm:g}" for mm in parameters.input_spacing_mm)
    return [
        f"- {parameters.kind}: {spacing} mm voxels along {parameters.axes}; {common}",
        f"- patches of {shape} voxels, overlapping by {parameters.overlap:g}, averaged",
        f"- boxes with scores above {parameters.score_threshold:g}, at most"
        f" {parameters.top_k_per_level} of each level; suppressed above an overlap (IoU) of"
        f" {parameters.nms_iou:g}; at most {parameters.most_boxes}",
        "- in the lungs only, unless the whole volume is asked for; marks of one lesion are merged",
    ]
