"""Where a worker reads voxels from, and where it refuses to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from phoi_inference.errors import (
    BadRequest,
    InferenceError,
    NotAllowed,
    SettingsError,
    UnknownVolume,
    VolumeDamaged,
)
from phoi_inference.settings import WorkerSettings
from phoi_inference.volumes import Handle, Reference, VolumeReader
from phoi_models.errors import Cancelled
from phoi_models.geometry import Geometry
from phoi_models.volume import Volume
from phoi_protos.transport import TlsFiles, TransportError, is_local

GEOMETRY = Geometry((3, 4, 5), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), ((0, 0, 1), (0, 1, 0), (1, 0, 0)))
VOLUME = Volume(np.arange(60, dtype=np.int16).reshape(3, 4, 5) - 1000, GEOMETRY)
CONTENT = VOLUME.hu.astype("<i2").tobytes()
SOURCE = "edge.example:50052"


def pull_in_two(address: str, token: str) -> Iterator[bytes]:
    assert (address, token) == (SOURCE, "token")
    yield CONTENT[:70]
    yield CONTENT[70:]


@pytest.fixture
def reader(tmp_path: Path) -> VolumeReader:
    folder = tmp_path / "volumes"
    folder.mkdir()
    (folder / "ct.hu").write_bytes(CONTENT)
    (tmp_path / "secret.hu").write_bytes(CONTENT)
    return VolumeReader(folder, frozenset({SOURCE}), pull_in_two)


def read(reader: VolumeReader, location: Handle | Reference, digest: str = "") -> Volume:
    return reader.read(location, GEOMETRY, digest or VOLUME.digest(), lambda: False)


@pytest.mark.parametrize("location", [Handle("ct.hu"), Reference(SOURCE, "token")])
def test_both_ways_give_the_same_volume(reader: VolumeReader, location: Handle | Reference) -> None:
    volume = read(reader, location)

    assert volume.hu.dtype == np.int16
    np.testing.assert_array_equal(volume.hu, VOLUME.hu)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../secret.hu",
        "/etc/passwd",
        "a/b",
        "ct.hu\n",
        "ct.hu\0",
        ".hidden",
        "a" * 129,
    ],
)
def test_a_handle_is_a_plain_file_name(reader: VolumeReader, name: str) -> None:
    with pytest.raises(BadRequest):
        read(reader, Handle(name))


def test_a_link_out_of_the_folder_is_not_followed(reader: VolumeReader) -> None:
    assert reader.folder is not None
    (reader.folder / "link.hu").symlink_to(reader.folder.parent / "secret.hu")

    with pytest.raises(UnknownVolume):
        read(reader, Handle("link.hu"))


def test_a_handle_that_names_nothing_readable_is_refused(reader: VolumeReader) -> None:
    assert reader.folder is not None
    (reader.folder / "folder.hu").mkdir()
    os.mkfifo(reader.folder / "pipe.hu")

    for name, error in (
        ("missing.hu", UnknownVolume),
        ("folder.hu", NotAllowed),
        ("pipe.hu", NotAllowed),
    ):
        with pytest.raises(error):
            read(reader, Handle(name))


@pytest.mark.parametrize("content", [b"", CONTENT[:-2], CONTENT + b"\0\0", b"\1" + CONTENT[1:]])
def test_other_voxels_are_refused(reader: VolumeReader, content: bytes) -> None:
    assert reader.folder is not None
    (reader.folder / "ct.hu").write_bytes(content)
    pulled = replace(reader, pull=lambda address, token: iter([content]))

    for changed, location in ((reader, Handle("ct.hu")), (pulled, Reference(SOURCE, "token"))):
        with pytest.raises(VolumeDamaged):
            read(changed, location)


def test_another_geometry_is_another_volume(reader: VolumeReader) -> None:
    moved = replace(GEOMETRY, origin_lps_mm=(1.0, 0.0, 0.0))

    with pytest.raises(VolumeDamaged):
        reader.read(Handle("ct.hu"), moved, VOLUME.digest(), lambda: False)


def test_what_is_not_configured_is_refused(reader: VolumeReader) -> None:
    with pytest.raises(NotAllowed, match="--source"):
        read(reader, Reference("elsewhere:50052", "token"))
    with pytest.raises(NotAllowed, match="--volumes"):
        read(replace(reader, folder=None), Handle("ct.hu"))


def test_pulling_stops_when_nobody_waits(reader: VolumeReader) -> None:
    with pytest.raises(Cancelled):
        reader.read(Reference(SOURCE, "token"), GEOMETRY, VOLUME.digest(), lambda: True)


def test_a_volume_of_absurd_size_is_refused_before_memory_is_taken(reader: VolumeReader) -> None:
    absurd = replace(GEOMETRY, shape=(100_000, 100_000, 100_000))

    with pytest.raises(BadRequest, match="GiB"):
        reader.read(Reference(SOURCE, "token"), absurd, VOLUME.digest(), lambda: False)


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("unix:/run/phoi.sock", True),
        ("127.0.0.1:50051", True),
        ("127.8.9.10:1", True),
        ("[::1]:50051", True),
        ("localhost:0", True),
        ("0.0.0.0:50051", False),
        ("[::]:50051", False),
        ("10.0.0.1:50051", False),
        ("worker.example:50051", False),
        ("localhost.example:50051", False),
    ],
)
def test_what_stays_on_this_host(tmp_path: Path, address: str, *, local: bool) -> None:
    tls = TlsFiles(tmp_path / "a", tmp_path / "b", tmp_path / "c")
    assert is_local(address) == local

    WorkerSettings((address,), tmp_path, tmp_path, tls=tls)
    if not local:
        with pytest.raises(SettingsError, match="TLS"):
            WorkerSettings((address,), tmp_path, tmp_path)
        with pytest.raises(SettingsError, match="TLS"):
            WorkerSettings(("unix:/x",), tmp_path, tmp_path, sources=frozenset({address}))


@pytest.mark.parametrize("address", ["", "50051", "host", "host:", "host:port", ":1", "host:70000"])
def test_an_address_that_is_none(tmp_path: Path, address: str) -> None:
    with pytest.raises(TransportError, match="host:port"):
        is_local(address)
    with pytest.raises(InferenceError, match="phoi worker --help"):
        WorkerSettings((address,), tmp_path, tmp_path)
