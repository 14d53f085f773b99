"""A whole hospital, once for all acceptance tests that only add studies to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from phoi_edge_node.sample import default_cache
from phoi_edge_node.stand_ins.hospital import Hospital, Ports, hospital


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    folder: Path = tmp_path_factory.mktemp("hospital")
    with hospital(folder, default_cache(), Ports()) as running:
        yield running
