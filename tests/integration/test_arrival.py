"""Compressed images are decoded while they arrive; what hostile ones do, they do to no edge."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import psutil
import pytest
from phoi_edge_node.dicom import decoding
from phoi_edge_node.dicom.arrival import (
    ArrivalDecoder,
    DecodedFiles,
    DecodingOnArrival,
    ForgettingDecoded,
    arrival_decoder,
)
from phoi_edge_node.dicom.decoding import DecodingProcesses
from phoi_edge_node.dicom.headers import instance_from_file
from phoi_edge_node.dicom.instance_files import InstanceFiles
from phoi_edge_node.dicom.series_reader import DicomSeriesReader
from phoi_edge_node.ports import Intake, ReceivedInstance
from phoi_edge_node.settings import DicomSettings
from phoi_models.errors import NotAnalysable, NotAnalysableReason
from phoi_models.geometry import Geometry
from phoi_models.reading.ct_image import CtImage, read_ct_image
from phoi_models.volume import Volume
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless
from support import killed_decoder
from support.dicom_phantom import SeriesOptions, write_series
from support.enhanced_ct import write_enhanced
from support.harmful_decoders import crash, hang

PLENTY = 1 << 40


class Receiver:
    """Answers as it is told."""

    def __init__(self, intake: Intake = Intake.STORED) -> None:
        self.intake = intake
        self.released: list[str] = []

    def instance_received(self, instance: ReceivedInstance, association: str) -> Intake:
        return self.intake

    def association_released(self, association: str) -> None:
        self.released.append(association)


@pytest.fixture(scope="module")
def processes() -> Iterator[DecodingProcesses]:
    running = DecodingProcesses(1)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def chest() -> Volume:
    rng = np.random.default_rng(7)
    hu = rng.integers(-1000, 1000, (21, 48, 40)).astype(np.int16)
    axes = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
    return Volume(hu, Geometry(hu.shape, (5.0, 3.0, 3.0), (-70, -90, -50), axes))


@pytest.fixture
def instances(tmp_path: Path, chest: Volume) -> Sequence[ReceivedInstance]:
    paths = write_series(tmp_path / "ct", chest, SeriesOptions(transfer_syntax=JPEG2000Lossless))
    return [instance_from_file(tmp_path / "ct", path.name) for path in paths]


def make_decoder(
    tmp_path: Path,
    processes: DecodingProcesses,
    budget: int = PLENTY,
    free_bytes: Callable[[], int] = lambda: PLENTY,
) -> ArrivalDecoder:
    decoded = DecodedFiles(tmp_path / "decoded", budget, free_bytes)
    return ArrivalDecoder(tmp_path / "ct", decoded, processes)


def decode_all(decoder: ArrivalDecoder, instances: Sequence[ReceivedInstance]) -> None:
    receiver = DecodingOnArrival(Receiver(), decoder)
    for instance in instances:
        assert receiver.instance_received(instance, "a") is Intake.STORED
    while decoder._waiting or decoder._running:
        decoder.begin_next()


def kept(tmp_path: Path) -> set[str]:
    return {path.stem for path in (tmp_path / "decoded").iterdir()}


def read(tmp_path: Path, decoder: ArrivalDecoder, of: Sequence[ReceivedInstance]) -> Volume:
    reader = DicomSeriesReader(tmp_path / "ct", decoder.files_hu)
    return reader.read(reader.choose(of))


def test_what_arrived_is_decoded_before_it_is_read(
    tmp_path: Path,
    processes: DecodingProcesses,
    instances: Sequence[ReceivedInstance],
    chest: Volume,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoder = make_decoder(tmp_path, processes)
    decode_all(decoder, instances)
    assert kept(tmp_path) == {Path(instance.path).stem for instance in instances}
    monkeypatch.setattr(processes, "submit", None)  # nothing is left to decode
    assert np.array_equal(read(tmp_path, decoder, instances).hu, chest.hu)


def test_what_was_decoded_of_a_damaged_file_is_not_given_for_the_one_that_came_again(
    tmp_path: Path,
    processes: DecodingProcesses,
    instances: Sequence[ReceivedInstance],
    chest: Volume,
) -> None:
    first, other = (tmp_path / "ct" / instances[z].path for z in (0, 1))
    whole = first.read_bytes()
    first.write_bytes(other.read_bytes())
    decoder = make_decoder(tmp_path, processes)
    decode_all(decoder, instances)
    first.unlink()
    first.write_bytes(whole)
    assert np.array_equal(read(tmp_path, decoder, instances).hu, chest.hu)


def test_what_was_not_decoded_yet_is_read_all_the_same(
    tmp_path: Path,
    processes: DecodingProcesses,
    instances: Sequence[ReceivedInstance],
    chest: Volume,
) -> None:
    decoder = make_decoder(tmp_path, processes)
    for instance in instances[:9]:
        decoder.arrived(instance)
    assert np.array_equal(read(tmp_path, decoder, instances).hu, chest.hu)


@pytest.mark.parametrize("intake", [Intake.DUPLICATE, Intake.CONFLICT, Intake.OTHER_PATIENT])
def test_only_what_is_new_is_decoded(
    tmp_path: Path,
    processes: DecodingProcesses,
    instances: Sequence[ReceivedInstance],
    intake: Intake,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("phoi_edge_node.dicom.arrival._PATIENCE_S", 0.01)
    decoder = make_decoder(tmp_path, processes)
    told = Receiver(intake)
    receiver = DecodingOnArrival(told, decoder)
    assert receiver.instance_received(instances[0], "a") is intake
    receiver.association_released("a")
    assert told.released == ["a"]
    assert not decoder.begin_next()


def test_what_is_not_compressed_needs_no_process(
    tmp_path: Path, processes: DecodingProcesses, chest: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("phoi_edge_node.dicom.arrival._PATIENCE_S", 0.01)
    monkeypatch.setattr(processes, "submit", None)
    paths = write_series(
        tmp_path / "ct", chest, SeriesOptions(transfer_syntax=ExplicitVRLittleEndian)
    )
    plain = [instance_from_file(tmp_path / "ct", path.name) for path in paths]
    decoder = make_decoder(tmp_path, processes)
    decode_all(decoder, plain)
    assert kept(tmp_path) == set()
    assert np.array_equal(read(tmp_path, decoder, plain).hu, chest.hu)


def test_it_keeps_to_its_budget_and_drops_the_oldest(
    tmp_path: Path, processes: DecodingProcesses, instances: Sequence[ReceivedInstance]
) -> None:
    decoder = make_decoder(tmp_path, processes, budget=3 * 48 * 40 * 2)
    decode_all(decoder, instances[:5])
    assert kept(tmp_path) == {Path(instance.path).stem for instance in instances[2:5]}


def test_a_full_disk_gets_all_of_it_back(
    tmp_path: Path,
    processes: DecodingProcesses,
    instances: Sequence[ReceivedInstance],
    chest: Volume,
) -> None:
    free = [PLENTY]
    decoder = make_decoder(tmp_path, processes, free_bytes=lambda: free[0])
    decode_all(decoder, instances[:3])
    assert len(kept(tmp_path)) == 3
    free[0] = 0
    decode_all(decoder, instances[3:4])
    assert kept(tmp_path) == set()
    assert np.array_equal(read(tmp_path, decoder, instances).hu, chest.hu)


def test_what_a_crash_left_is_not_trusted(
    tmp_path: Path,
    processes: DecodingProcesses,
    instances: Sequence[ReceivedInstance],
    chest: Volume,
) -> None:
    decode_all(make_decoder(tmp_path, processes), instances[:3])
    for path in (tmp_path / "decoded").iterdir():
        path.write_bytes(b"\0" * path.stat().st_size)
    decoder = make_decoder(tmp_path, processes)
    assert kept(tmp_path) == set()
    assert np.array_equal(read(tmp_path, decoder, instances).hu, chest.hu)


def test_a_file_that_was_cut_short_is_not_used(
    tmp_path: Path,
    processes: DecodingProcesses,
    instances: Sequence[ReceivedInstance],
    chest: Volume,
) -> None:
    decoder = make_decoder(tmp_path, processes)
    decode_all(decoder, instances)
    for number, path in enumerate((tmp_path / "decoded").iterdir()):
        path.write_bytes(path.read_bytes()[: 100 * number])
    assert np.array_equal(read(tmp_path, decoder, instances).hu, chest.hu)


@pytest.mark.parametrize("harm", [crash, hang])
def test_a_file_that_kills_its_decoder_is_named_and_nothing_else_dies(
    tmp_path: Path,
    instances: Sequence[ReceivedInstance],
    chest: Volume,
    monkeypatch: pytest.MonkeyPatch,
    harm: Callable[[Path], None],
) -> None:
    processes = DecodingProcesses(1)
    decoder = make_decoder(tmp_path, processes)
    with monkeypatch.context() as patched:
        patched.setattr(decoding, "_decode", harm)
        image = read_ct_image(tmp_path / "ct" / instances[0].path)
        with pytest.raises(NotAnalysable, match="its decoder crashed or took too long") as caught:
            list(decoder.files_hu([image]))
    assert caught.value.reason is NotAnalysableReason.UNREADABLE_PIXELS
    assert instances[0].sop_instance_uid in caught.value.detail
    assert np.array_equal(read(tmp_path, decoder, instances).hu, chest.hu)
    decoder.stop()


def test_a_file_of_many_frames_may_take_longer(
    tmp_path: Path, chest: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed: list[float] = []

    def look(image: CtImage) -> Iterator[np.ndarray]:
        allowed.append(signal.getitimer(signal.ITIMER_PROF)[0])
        return iter(())

    monkeypatch.setattr(decoding, "frames_hu", look)
    write_enhanced(tmp_path / "many.dcm", chest)
    decoding._decode(tmp_path / "many.dcm")
    assert allowed == [pytest.approx(120 + 21, abs=2)]
    assert signal.getitimer(signal.ITIMER_PROF)[0] == 0


def test_a_process_that_dies_costs_the_others_nothing(
    tmp_path: Path, instances: Sequence[ReceivedInstance], chest: Volume
) -> None:
    """All files that are under way when a process dies are decoded again."""
    processes = DecodingProcesses(1)
    decoder = make_decoder(tmp_path, processes)
    images = [read_ct_image(tmp_path / "ct" / instance.path) for instance in instances]
    frames = decoder.files_hu(images)
    next(frames)
    (process,) = processes._pool._processes.values()  # type: ignore[union-attr]
    killer = threading.Thread(target=process.kill)
    killer.start()
    assert len([list(pixels) for pixels in frames]) == len(images) - 1
    killer.join()
    decoder.stop()


def test_no_process_outlives_a_killed_edge(
    tmp_path: Path, instances: Sequence[ReceivedInstance]
) -> None:
    paths = [tmp_path / "ct" / instance.path for instance in instances[:4]]
    with subprocess.Popen(
        [sys.executable, killed_decoder.__file__, *map(str, paths)], stdout=subprocess.PIPE
    ) as program:
        assert program.stdout is not None
        pids = [int(pid) for pid in program.stdout.readline().split()]
        assert pids
        assert all(psutil.pid_exists(pid) for pid in pids)
        program.kill()
    _, alive = psutil.wait_procs(
        [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=60
    )
    assert alive == []


def test_what_retention_removes_is_forgotten_too(
    tmp_path: Path, processes: DecodingProcesses, instances: Sequence[ReceivedInstance]
) -> None:
    decoder = make_decoder(tmp_path, processes)
    decode_all(decoder, instances[:3])

    class Images:
        def going(self, study_instance_uid: str) -> AbstractContextManager[None]:
            return nullcontext()

        def retire(self, study_instance_uid: str) -> None:
            for instance in instances[:2]:
                (tmp_path / "ct" / instance.path).unlink()

        def empty(self, before: datetime) -> int:
            return 2

        def drop_quarantined(self, before: datetime) -> int:
            return 0

        def room(self) -> int:
            return 5

    images = ForgettingDecoded(Images(), decoder)
    images.retire(instances[0].study_instance_uid)
    assert kept(tmp_path) == {Path(instances[2].path).stem}
    assert (images.empty(datetime.now(UTC)), images.room()) == (2, 5)


def test_an_edge_with_no_room_for_decoded_images_decodes_none(
    tmp_path: Path, instances: Sequence[ReceivedInstance], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("phoi_edge_node.dicom.arrival._PATIENCE_S", 0.01)
    settings = DicomSettings(decoded_images_mb=0)
    files = InstanceFiles(tmp_path / "instances")
    decoder = arrival_decoder(tmp_path / "decoded", files, settings)
    decoder.arrived(instances[0])
    assert not decoder.begin_next()
    assert kept(tmp_path) == set()
