"""The real chest CT that the tests use."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from phoi_edge_node.sample import default_cache, fetch_sample


@cache
def lidc_idri_0001() -> Path:
    """Folder of the 133 DICOM files of LIDC-IDRI-0001; fetched on first use."""
    return fetch_sample(default_cache(), say=lambda _: None)
