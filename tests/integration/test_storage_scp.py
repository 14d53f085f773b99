"""DCMTK sends; what the SCP answered success for lies on disk, and reads back voxel for voxel."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from phoi_edge_node.dicom.headers import instance_from_file
from phoi_edge_node.dicom.series_reader import DicomSeriesReader
from phoi_edge_node.dicom.storage_scu import StorableFile, association, store
from phoi_edge_node.errors import EdgeError
from phoi_edge_node.ports import (
    Delivered,
    Erred,
    ReceivedInstance,
    Refused,
    SendOutcome,
    Unreachable,
)
from phoi_models.errors import NotAnalysable, NotAnalysableReason
from phoi_models.geometry import Geometry
from phoi_models.volume import Volume
from pydicom import Dataset, dcmread
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    MRImageStorage,
    RLELossless,
)
from support.dcmtk import convert, run, storescu
from support.dicom_edge import Edge, running_edge
from support.dicom_phantom import SeriesOptions, write_series
from support.planted import secrets_in
from support.real_ct import lidc_idri_0001

Start = Callable[..., Edge]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as running:
        yield lambda **settings: running.enter_context(
            running_edge(tmp_path / "instances", **settings)
        )


@pytest.fixture
def edge(start: Start) -> Edge:
    return start()


@pytest.fixture(scope="module")
def chest() -> Volume:
    rng = np.random.default_rng(7)
    smooth = np.add.outer(np.arange(21) * 20, np.add.outer(np.arange(64) * 9, np.arange(48) * 11))
    hu = (smooth - 1000 + rng.integers(-20, 20, smooth.shape)).astype(np.int16)
    axes = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
    return Volume(hu, Geometry(hu.shape, (5.0, 3.0, 3.0), (-70, -90, -50), axes))


ENCODINGS: dict[str, tuple[str, ...]] = {
    ExplicitVRLittleEndian: (),
    ImplicitVRLittleEndian: ("dcmconv", "+ti"),
    ExplicitVRBigEndian: ("dcmconv", "+tb"),
    DeflatedExplicitVRLittleEndian: ("dcmconv", "+td"),
    JPEGLosslessSV1: ("dcmcjpeg", "+e1"),
    JPEGLSLossless: ("dcmcjpls",),
    RLELossless: ("dcmcrle",),
    JPEG2000Lossless: ("gdcmconv", "--j2k"),
}


@pytest.mark.parametrize("transfer_syntax", ENCODINGS)
def test_every_encoding_arrives_voxel_for_voxel(
    tmp_path: Path, edge: Edge, chest: Volume, transfer_syntax: str
) -> None:
    sources = write_series(tmp_path / "plain", chest)
    sent = tmp_path / "sent"
    sent.mkdir()
    for source in sources:
        if encoder := ENCODINGS[transfer_syntax]:
            convert(encoder[0], source, sent / source.name, *encoder[1:])
        else:
            source.rename(sent / source.name)

    done = storescu(edge.scp.port, sent, transfer_syntax=transfer_syntax)

    assert done.returncode == 0, done.stderr
    edge.wait_for_release()
    instances = edge.receiver.instances
    assert {instance.transfer_syntax_uid for instance in instances} == {transfer_syntax}
    reader = DicomSeriesReader(edge.files.root)
    choice = reader.choose(instances)
    volume = reader.read(choice)
    assert np.array_equal(volume.hu, chest.hu)
    assert choice.reason == "the only suitable series: 21 slices of 5 mm"
    for z in (0, 20):
        header = dcmread(edge.files.root / choice.instances[z].path, stop_before_pixels=True)
        place = volume.geometry.index_to_lps((z, 0, 0))
        assert np.allclose(header.ImagePositionPatient, place, atol=1e-4)


def test_a_real_ct_arrives_bit_for_bit(edge: Edge) -> None:
    done = storescu(edge.scp.port, lidc_idri_0001())

    assert done.returncode == 0, done.stderr
    sent = {
        instance.sop_instance_uid: instance
        for instance in (
            instance_from_file(lidc_idri_0001(), path.name) for path in lidc_idri_0001().iterdir()
        )
    }
    assert {i.sop_instance_uid: i.sha256 for i in edge.receiver.instances} == {
        uid: instance.sha256 for uid, instance in sent.items()
    }
    # What the index was told can be had again from the disk alone.
    again = [instance_from_file(edge.files.root, path) for path in edge.files.paths()]
    moments = [instance.received_at for instance in edge.receiver.instances]
    told = [replace(i, received_at=moments[0]) for i in edge.receiver.instances]
    assert sorted(told, key=str) == sorted(
        (replace(i, received_at=moments[0]) for i in again), key=str
    )


def test_echo(edge: Edge) -> None:
    assert run("echoscu", "-aec", "PHOI", "127.0.0.1", edge.scp.port).returncode == 0


@pytest.mark.parametrize(
    ("called", "calling", "allowed", "reason"),
    [
        ("OTHER", "CT1", (), "Called AE Title Not Recognized"),
        ("PHOI", "STRANGER", ("CT1", "CT2"), "Calling AE Title Not Recognized"),
    ],
)
def test_who_is_not_allowed_stores_nothing(
    tmp_path: Path,
    start: Start,
    chest: Volume,
    called: str,
    calling: str,
    allowed: tuple[str, ...],
    reason: str,
) -> None:
    edge = start(allowed_calling_ae_titles=allowed)
    (first, *_) = write_series(tmp_path / "ct", chest)

    refused = storescu(edge.scp.port, first, called=called, calling=calling)

    assert refused.returncode != 0
    assert reason in refused.stderr + refused.stdout
    assert list(edge.files.paths()) == []
    assert storescu(edge.scp.port, first).returncode == 0


def test_what_is_no_ct_is_not_negotiated(tmp_path: Path, edge: Edge, chest: Volume) -> None:
    (first, second, *_) = write_series(tmp_path / "ct", chest)
    dataset = dcmread(first)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = MRImageStorage
    dataset.Modality = "MR"
    dataset.save_as(first)

    assert storescu(edge.scp.port, first).returncode != 0
    assert edge.receiver.received == []
    assert storescu(edge.scp.port, second).returncode == 0


def edit(path: Path, change: Callable[[Dataset], object]) -> Path:
    dataset = dcmread(path)
    change(dataset)
    dataset.save_as(path)
    return path


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        (lambda d: setattr(d, "SOPInstanceUID", "1.2.3"), Refused("status 0xA900")),
        (lambda d: setattr(d, "SOPClassUID", EnhancedCTImageStorage), Refused("status 0xA900")),
        (lambda d: delattr(d, "StudyInstanceUID"), Erred("status 0xC000")),
        (lambda d: setattr(d, "SeriesInstanceUID", ""), Erred("status 0xC000")),
    ],
)
def test_a_data_set_that_is_not_what_the_request_says_is_refused(
    tmp_path: Path,
    edge: Edge,
    chest: Volume,
    change: Callable[[Dataset], object],
    answer: SendOutcome,
) -> None:
    (first, second, *_) = write_series(tmp_path / "ct", chest)
    assert edge.send(edit(first, change)) == answer
    assert list(edge.files.paths()) == []
    assert isinstance(edge.send(second), Delivered)


def test_a_truncated_header_is_refused_and_a_truncated_image_is_named_later(
    tmp_path: Path, edge: Edge, chest: Volume
) -> None:
    paths = write_series(tmp_path / "ct", chest)
    header, image, *others = paths
    header.write_bytes(header.read_bytes()[:600])
    image.write_bytes(image.read_bytes()[:-2000])

    assert edge.send(header) == Erred("status 0xC000")
    assert isinstance(edge.send(image), Delivered)
    assert storescu(edge.scp.port, *others).returncode == 0
    reader = DicomSeriesReader(edge.files.root)
    choice = reader.choose(edge.receiver.instances)
    with pytest.raises(NotAnalysable) as caught:
        reader.read(choice)
    assert caught.value.reason is NotAnalysableReason.UNREADABLE_PIXELS


def test_a_missing_slice_is_named(tmp_path: Path, edge: Edge, chest: Volume) -> None:
    write_series(tmp_path / "ct", chest, SeriesOptions(missing=(10, 11)))
    assert storescu(edge.scp.port, tmp_path / "ct").returncode == 0
    with pytest.raises(NotAnalysable) as caught:
        DicomSeriesReader(edge.files.root).choose(edge.receiver.instances)
    assert caught.value.reason is NotAnalysableReason.MISSING_SLICES
    assert caught.value.detail == "2 of 21 slices are missing"


def test_two_studies_in_one_association_stay_two(tmp_path: Path, edge: Edge, chest: Volume) -> None:
    first = write_series(tmp_path / "1", chest, SeriesOptions(study=1))
    second = write_series(tmp_path / "2", chest, SeriesOptions(study=2, patient_id="OTHER"))
    mixed = [path for pair in zip(first, second, strict=True) for path in pair]

    assert storescu(edge.scp.port, *mixed).returncode == 0

    edge.wait_for_release()
    assert len({name for _, name in edge.receiver.received}) == 1
    studies: dict[str, list[ReceivedInstance]] = {}
    for instance in edge.receiver.instances:
        studies.setdefault(instance.study_instance_uid, []).append(instance)
    assert {len(members) for members in studies.values()} == {21}
    folders = {Path(instance.path).parent for instance in edge.receiver.instances}
    assert len(folders) == 2
    reader = DicomSeriesReader(edge.files.root)
    for members in studies.values():
        assert np.array_equal(reader.read(reader.choose(members)).hu, chest.hu)


def test_the_same_instance_again_is_success_and_changes_nothing(
    tmp_path: Path, edge: Edge, chest: Volume
) -> None:
    (first, *_) = write_series(tmp_path / "ct", chest)
    assert [storescu(edge.scp.port, first).returncode for _ in range(2)] == [0, 0]
    assert len(edge.receiver.received) == len(list(edge.files.paths())) == 1
    edge.wait_for_release(2)


def test_other_content_under_a_known_uid_is_set_aside(
    tmp_path: Path, edge: Edge, chest: Volume
) -> None:
    (first, *_) = write_series(tmp_path / "ct", chest)
    assert isinstance(edge.send(first), Delivered)
    kept = (edge.files.root / next(edge.files.paths())).read_bytes()

    edit(first, lambda d: setattr(d, "PatientID", "SOMEBODY-ELSE"))

    assert edge.send(first) == Refused("status 0x0111")
    assert (edge.files.root / next(edge.files.paths())).read_bytes() == kept
    assert len(list((edge.files.root / "quarantine").iterdir())) == 1


def test_a_nearly_full_disk_takes_nothing(tmp_path: Path, start: Start, chest: Volume) -> None:
    edge = start(minimum_free_disk_mb=10**9)
    (first, *_) = write_series(tmp_path / "ct", chest)
    assert edge.send(first) == Unreachable("status 0xA700")
    assert [path for path in edge.files.root.rglob("*") if path.is_file()] == []


def test_no_success_without_the_index(tmp_path: Path, edge: Edge, chest: Volume) -> None:
    """The file is on disk, so nothing is lost; the sender, told no, will send it again."""
    (first, *_) = write_series(tmp_path / "ct", chest)
    edge.receiver.failing = RuntimeError("database is locked")
    assert edge.send(first) == Unreachable("status 0xA700")
    edge.receiver.failing = None
    assert isinstance(edge.send(first), Delivered)
    assert len(list(edge.files.paths())) == 1


def test_a_lost_connection_ends_the_association(tmp_path: Path, edge: Edge, chest: Volume) -> None:
    (first, *_) = write_series(tmp_path / "ct", chest)
    file = StorableFile.open(first)
    context = (file.sop_class_uid, file.transfer_syntax_uid)
    with association(edge.peer, "CT1", {context}) as link:
        assert isinstance(store(link, file), Delivered)
        link.abort()
    edge.wait_for_release()


def test_stopping_ends_open_associations(tmp_path: Path, edge: Edge, chest: Volume) -> None:
    first, second, *_ = write_series(tmp_path / "ct", chest)
    file = StorableFile.open(first)
    with association(edge.peer, "CT1", {(file.sop_class_uid, file.transfer_syntax_uid)}) as link:
        assert isinstance(store(link, file), Delivered)
        edge.scp.stop()
        assert isinstance(store(link, StorableFile.open(second)), Unreachable)
    edge.wait_for_release()
    assert len(list(edge.files.paths())) == 1


@pytest.mark.parametrize("length", [0xFFFFFFF0, 0x10000000, 512 * 1024])
@pytest.mark.parametrize("pdu_type", [0x01, 0x04])
def test_a_claimed_length_costs_no_memory(edge: Edge, length: int, pdu_type: int) -> None:
    with socket.create_connection(("127.0.0.1", edge.scp.port), timeout=10) as peer:
        peer.sendall(struct.pack(">BBL", pdu_type, 0, length))
        assert peer.recv(64)[:1] in {b"", b"\x07"}  # closed, or aborted
    assert run("echoscu", "-aec", "PHOI", "127.0.0.1", edge.scp.port).returncode == 0


def test_logs_hold_no_patient(
    tmp_path: Path, edge: Edge, chest: Volume, capfd: pytest.CaptureFixture[str]
) -> None:
    (first, second, *_) = write_series(tmp_path / "ct", chest)
    edge.send(first)
    edge.send(edit(second, lambda d: delattr(d, "StudyInstanceUID")))
    edge.receiver.failing = RuntimeError("no")
    edge.send(first)
    said = "".join(capfd.readouterr())
    assert "refused" in said
    assert "not_stored" in said
    assert secrets_in(said) == frozenset()


def test_a_taken_port_is_said_plainly(edge: Edge, start: Start) -> None:
    with pytest.raises(EdgeError, match=r"set dicom\.port to another one"):
        start(port=edge.scp.port)
