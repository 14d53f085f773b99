"""What a reviewer said, as training sees it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from phoi_models.feedback import (
    Case,
    FeedbackIndex,
    Label,
    LabelledBy,
    Verdict,
    crop_bytes,
    write_index,
)
from phoi_models.networks import CenterHeatmapNet
from phoi_training.dataset import Background, digest, load
from phoi_training.export import ExportMismatch, export_onnx
from phoi_training.fit import losses
from phoi_training.patches import Patch, targets
from phoi_training.train import untuned

SHAPE = (32, 40, 40)


def dataset(folder: Path, verdict: Verdict, diameter_mm: float | None = 6.0) -> Background:
    """A data set of one crop with one mark at (16, 20, 20), as training reads it."""
    (folder / "cases").mkdir(parents=True)
    content = crop_bytes(np.full(SHAPE, -850, np.int16))
    label = Label(
        center_zyx=(16, 20, 20), diameter_mm=diameter_mm, verdict=verdict, probability=None
    )
    case = Case(
        id="0" * 32,
        patient="a" * 32,
        sha256=hashlib.sha256(content).hexdigest(),
        shape=SHAPE,
        spacing_mm=(2.0, 1.0, 1.0),
        axes_lps=((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0)),
        labels=(label,),
        model=LabelledBy(name="m", version="1", bundle_hash="c" * 64, device_uid="2.25.1"),
        reviewer_role="reviewer",
    )
    (folder / case.file).write_bytes(content)
    write_index(folder, FeedbackIndex.of("e" * 32, [case]))
    (background,) = load(folder, None)
    return background


def test_what_was_kept_is_a_nodule_and_what_was_rejected_is_none(tmp_path: Path) -> None:
    kept = dataset(tmp_path / "kept", "modified")
    assert [mark.center_lps_mm for mark in kept.nodules] == [(20, 20, 32)]
    assert kept.rejected == ()
    assert kept.patient == "a" * 32
    rejected = dataset(tmp_path / "rejected", "rejected")
    assert rejected.nodules == ()
    assert [mark.diameter_mm for mark in rejected.rejected] == [6.0]
    assert digest([kept]) != digest([rejected])


def test_a_missed_nodule_that_nobody_measured_has_a_size(tmp_path: Path) -> None:
    (mark,) = dataset(tmp_path / "set", "missed", None).nodules
    assert 3 < mark.diameter_mm < 15


@pytest.mark.parametrize(("rejected", "punished"), [(True, True), (False, False)])
def test_only_a_rejected_mark_is_known_to_be_false(rejected: bool, punished: bool) -> None:  # noqa: FBT001
    """Elsewhere in a crop there may be nodules that nobody marked."""
    at = np.array([[16.0, 16.0, 16.0, 6.0]])
    nothing = np.empty((0, 4))
    hu = np.full((32, 32, 32), -850, np.int16)
    patch = Patch(hu, nothing, nothing, complete=False, rejected=at if rejected else nothing)
    batch = {
        name: torch.from_numpy(value)[None]
        for name, value in targets(patch, untuned("1.0.0")).items()
    }
    logit = torch.full((1, 1, 8, 8, 8), -8.0)
    logit[0, 0, 4, 4, 4] = 5.0  # confident, at the mark
    diameter, offset = torch.ones(1, 1, 8, 8, 8), torch.zeros(1, 3, 8, 8, 8)
    loss = float(losses((logit, diameter, offset), batch)["heat"])
    assert (loss > 1.0) is punished


def test_a_network_that_answers_no_numbers_is_not_exported(tmp_path: Path) -> None:
    network = CenterHeatmapNet().eval()
    with torch.no_grad():
        next(network.parameters()).fill_(float("nan"))
    with pytest.raises(ExportMismatch):
        export_onnx(network, tmp_path / "model.onnx", (32, 32, 32))
