"""What is stored comes back as it was."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from phoi_edge_node.codec import from_json, to_json
from phoi_edge_node.result import Patient, TriageResult
from phoi_models.findings import NoduleMask
from support import values


@given(arrays(np.bool_, array_shapes(min_dims=3, max_dims=3, max_side=9)))
def test_masks_of_any_shape(voxels: NDArray[np.bool_]) -> None:
    stored = from_json(to_json(NoduleMask((1, 2, 3), voxels)), NoduleMask)
    assert stored.offset == (1, 2, 3)
    assert stored.voxels.dtype == np.bool_
    assert (stored.voxels == voxels).all()


@given(st.text(), st.dates())
def test_names_in_any_script(name: str, born: object) -> None:
    patient = replace(values.PATIENT, name=name, birth_date=born)  # type: ignore[arg-type]
    if not any("\ud800" <= c <= "\udfff" for c in name):
        assert from_json(to_json(patient), Patient) == patient


def test_a_whole_result() -> None:
    result = values.result()
    again = from_json(to_json(result), TriageResult)
    assert to_json(again) == to_json(result)
    assert again.analysed_at == result.analysed_at
    assert again.nodules[0].size_class == result.nodules[0].size_class
    assert again.coverage == result.coverage
