"""Voxels lent to workers on this host."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from phoi_edge_node.errors import InferenceUnavailable
from phoi_edge_node.grpc.volume_folder import VolumeFolder
from phoi_inference.volumes import Handle, VolumeReader
from phoi_models.geometry import Geometry
from phoi_models.volume import Volume

GEOMETRY = Geometry((3, 4, 5), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), ((0, 0, 1), (0, 1, 0), (1, 0, 0)))
# Not contiguous, as a volume that was flipped may be.
VOLUME = Volume(np.arange(60, dtype=np.int16).reshape(3, 4, 5)[::-1], GEOMETRY)
PLENTY = 1 << 20


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def refuse(address: str, token: str) -> None:
    raise AssertionError("nothing is pulled here")


def test_a_worker_reads_what_was_lent_and_only_as_long(tmp_path: Path) -> None:
    folder = VolumeFolder(tmp_path, PLENTY)
    reader = VolumeReader(tmp_path, frozenset(), refuse)  # type: ignore[arg-type]

    with folder.lend(VOLUME) as name:
        volume = reader.read(Handle(name), GEOMETRY, VOLUME.digest(), lambda: False)
        assert names(tmp_path) == [name]
    np.testing.assert_array_equal(volume.hu, VOLUME.hu)

    assert names(tmp_path) == []


def test_the_budget_holds_for_all_that_is_lent_at_once(tmp_path: Path) -> None:
    folder = VolumeFolder(tmp_path, budget_bytes=2 * VOLUME.hu.nbytes)

    with folder.lend(VOLUME), folder.lend(VOLUME):
        with pytest.raises(InferenceUnavailable, match="at once"), folder.lend(VOLUME):
            pass
        assert len(names(tmp_path)) == 2
    with folder.lend(VOLUME), folder.lend(VOLUME):
        pass


def test_a_full_disk_is_said_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    folder = VolumeFolder(tmp_path, PLENTY)

    with pytest.raises(InferenceUnavailable, match="No space left"), folder.lend(VOLUME):
        pass

    assert names(tmp_path) == []


def test_what_a_crash_left_is_swept_and_what_is_lent_is_not(tmp_path: Path) -> None:
    script = f"""
import os, signal, sys
import numpy as np
from pathlib import Path
from phoi_edge_node.grpc.volume_folder import VolumeFolder
from phoi_models.geometry import Geometry
from phoi_models.volume import Volume
axes = ((0, 0, 1), (0, 1, 0), (1, 0, 0))
geometry = Geometry((3, 4, 5), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), axes)
volume = Volume(np.zeros((3, 4, 5), np.int16), geometry)
with VolumeFolder(Path({str(tmp_path)!r}), 1 << 20).lend(volume):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    crashed = subprocess.run([sys.executable, "-c", script], check=False)
    assert crashed.returncode == -signal.SIGKILL
    assert len(names(tmp_path)) == 1

    with VolumeFolder(tmp_path, PLENTY).lend(VOLUME) as name:
        assert names(tmp_path) == [name]
        VolumeFolder(tmp_path, PLENTY)
        assert names(tmp_path) == [name]
