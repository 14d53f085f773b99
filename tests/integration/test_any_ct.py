"""Whatever a hospital's scanners and archives send is read as it was meant, or refused by name.

The files are made by other people's encoders and go through the real receiver.
"""

from __future__ import annotations

import tracemalloc
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from phoi_edge_node.cli.send import find_files, send
from phoi_edge_node.dicom.documents import DicomEncoder
from phoi_edge_node.dicom.headers import instance_from_file
from phoi_edge_node.dicom.instance_files import InstanceFiles
from phoi_edge_node.dicom.series_reader import DicomSeriesReader
from phoi_edge_node.dicom.storage_scp import TRANSFER_SYNTAXES, StorageScp
from phoi_edge_node.dicom.storage_scu import Peer
from phoi_edge_node.dicom.taking import InstanceTaker
from phoi_edge_node.ports import Intake, ReceivedInstance, SeriesChoice
from phoi_edge_node.result import Outcome
from phoi_edge_node.settings import DicomSettings
from phoi_edge_node.system import SystemClock
from phoi_models.errors import NotAnalysable, NotAnalysableReason
from phoi_models.geometry import Geometry
from phoi_models.reading.ct_image import read_ct_image
from phoi_models.reading.pixels import AIR_HU, frames_hu
from phoi_models.volume import Volume
from pydicom import DataElement, Dataset, dcmread
from pydicom.config import disable_value_validation
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)
from support.dcmtk import storescu
from support.dicom_phantom import SeriesOptions, acquire, write_series
from support.encodings import LOSSLESS, LOSSY, Encoder
from support.enhanced_ct import FrameOptions, write_enhanced, write_legacy_converted
from support.reported_cases import CountingUids, Images, case_of
from support.validators import dcmdump_value

Reason = NotAnalysableReason
TWELVE_BITS = (("BitsStored", 12), ("HighBit", 11))
ENCODED = [uid for uid in {**LOSSLESS, **LOSSY} if UID(uid).is_encapsulated]
MULTI_FRAME_ENCODINGS: Mapping[str, Encoder] = {
    uid: LOSSLESS[uid]
    for uid in (
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        DeflatedExplicitVRLittleEndian,
        JPEGLosslessSV1,
        JPEGLSLossless,
        RLELossless,
    )
}
# Largest error, HU, that each lossy encoding as made here may bring; NEAR of JPEG-LS is a promise.
BOUNDS_HU: Mapping[str, int] = {
    "1.2.840.10008.1.2.4.51": 30,
    "1.2.840.10008.1.2.4.81": 2,
    "1.2.840.10008.1.2.4.91": 30,
    "1.2.840.10008.1.2.4.203": 30,
}


class Inbox:
    """Keeps what the receiver tells."""

    def __init__(self) -> None:
        self.instances: list[ReceivedInstance] = []

    def instance_received(self, instance: ReceivedInstance, association: str) -> Intake:
        self.instances.append(instance)
        return Intake.STORED

    def association_released(self, association: str) -> None:
        pass


@pytest.fixture(scope="module")
def inbox() -> Inbox:
    return Inbox()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> InstanceFiles:
    return InstanceFiles(tmp_path_factory.mktemp("any-ct") / "instances")


@pytest.fixture(scope="module")
def scp(inbox: Inbox, files: InstanceFiles) -> Iterator[StorageScp]:
    settings = DicomSettings.model_validate({"port": 0, "minimum_free_disk_mb": 0})
    clock = SystemClock()
    running = StorageScp(settings, InstanceTaker(settings, files, inbox, clock), clock)
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def chest() -> Volume:
    """Noise on a slope, so that no two places are alike, within 12 bits; 21 x 64 x 48 voxels."""
    rng = np.random.default_rng(7)
    slope = np.add.outer(np.arange(21) * 20, np.add.outer(np.arange(64) * 9, np.arange(48) * 11))
    hu = (slope - 1000 + rng.integers(-20, 20, slope.shape)).astype(np.int16)
    axes = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
    return Volume(hu, Geometry(hu.shape, (5.0, 3.0, 3.0), (-70, -90, -50), axes))


def instances_in(folder: Path) -> list[ReceivedInstance]:
    return [instance_from_file(folder, path.name) for path in sorted(folder.glob("*.dcm"))]


def read(folder: Path) -> tuple[SeriesChoice, Volume]:
    """Chosen and read as an edge does it."""
    reader = DicomSeriesReader(folder)
    choice = reader.choose(instances_in(folder))
    return choice, reader.read(choice)


def refusal(folder: Path) -> NotAnalysable:
    with pytest.raises(NotAnalysable) as caught:
        read(folder)
    return caught.value


def remove(dataset: Dataset, keywords: Iterable[str]) -> None:
    for keyword in keywords:
        delattr(dataset, keyword)


def edit(path: Path, change: Callable[[Dataset], object]) -> Dataset:
    dataset = dcmread(path)
    change(dataset)
    dataset.save_as(path)
    return dataset


# --- transfer syntaxes ------------------------------------------------------------------------


def test_every_transfer_syntax_that_is_taken_is_tested() -> None:
    assert {*LOSSLESS, *LOSSY} == set(TRANSFER_SYNTAXES)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, chest: Volume) -> tuple[Path, ...]:
    return write_series(tmp_path_factory.mktemp("plain"), chest, SeriesOptions(header=TWELVE_BITS))


@pytest.mark.parametrize("transfer_syntax", [*LOSSLESS, *LOSSY])
def test_an_encoding_goes_through_the_receiver_voxel_for_voxel(
    tmp_path: Path,
    scp: StorageScp,
    inbox: Inbox,
    files: InstanceFiles,
    plain: tuple[Path, ...],
    chest: Volume,
    transfer_syntax: str,
) -> None:
    encode = {**LOSSLESS, **LOSSY}[transfer_syntax]
    for path in plain:
        encode(path, tmp_path / path.name)
    inbox.instances.clear()

    failed = send(find_files(tmp_path), Peer("PHOI", "127.0.0.1", scp.port), "CT1")

    assert not failed
    assert {i.transfer_syntax_uid for i in inbox.instances} == {transfer_syntax}
    reader = DicomSeriesReader(files.root)
    volume = reader.read(reader.choose(inbox.instances))
    assert volume.geometry.shape == chest.geometry.shape
    error = np.abs(volume.hu.astype(int) - chest.hu)
    assert error.max() <= BOUNDS_HU.get(transfer_syntax, 0)


@pytest.mark.parametrize("transfer_syntax", LOSSLESS)
@pytest.mark.parametrize(("bits", "high"), [(12, 11), (14, 13), (16, 15), (12, 14)])
def test_a_negative_value_stays_negative_with_and_without_the_bits_above_it(
    tmp_path: Path, chest: Volume, transfer_syntax: str, bits: int, high: int
) -> None:
    """Writers of signed pixels fill what is above the High Bit with the sign, or with nothing."""
    low = high + 1 - bits
    if low and transfer_syntax == JPEG2000Lossless:
        return  # GDCM's encoder writes another High Bit and loses the lowest bits' place
    header = (("BitsStored", bits), ("HighBit", high))
    options = SeriesOptions(signed=True, intercept=0.0, header=header)
    path = write_series(tmp_path, chest, options)[-1]
    expected = np.maximum(acquire(chest, "HFS").hu[-1], AIR_HU)
    assert expected.min() < -900
    assert expected.max() < 1 << (bits - 1)
    plain = dcmread(path)
    values = np.frombuffer(plain.PixelData, "<u2")
    for kept in (0xFFFF, (1 << bits) - 1):
        plain.PixelData = ((values & kept).astype("<u2") << np.uint16(low)).tobytes()
        plain.save_as(path)
        LOSSLESS[transfer_syntax](path, tmp_path / "encoded")
        (frame,) = frames_hu(read_ct_image(tmp_path / "encoded"))
        assert np.array_equal(frame, expected)


@pytest.fixture(params=ENCODED)
def encoded(
    request: pytest.FixtureRequest, tmp_path: Path, plain: tuple[Path, ...]
) -> tuple[Path, Path]:
    """A folder with a series in each encoding that compresses, and one file of it."""
    encode = {**LOSSLESS, **LOSSY}[request.param]
    (tmp_path / "ct").mkdir()
    for path in plain[::3]:  # every third: 15 mm apart, which is still enough to be decoded
        encode(path, tmp_path / "ct" / path.name)
    return tmp_path / "ct", tmp_path / "ct" / plain[9].name


def decode(path: Path) -> None:
    """Decode one file as reading a series does it."""
    for _ in frames_hu(read_ct_image(path)):
        pass


@pytest.mark.parametrize("keep", [0.05, 0.5, 0.97])
def test_a_code_stream_that_ends_too_early_is_named(
    encoded: tuple[Path, Path], keep: float
) -> None:
    _, path = encoded
    dataset = dcmread(path)
    stream = next(generate_frames(dataset.PixelData, number_of_frames=1))
    dataset.PixelData = encapsulate([stream[: int(len(stream) * keep)]])
    dataset.save_as(path)
    with pytest.raises(NotAnalysable) as caught:
        decode(path)
    assert caught.value.reason is Reason.UNREADABLE_PIXELS
    assert str(dataset.SOPInstanceUID) in caught.value.detail


def test_a_damaged_code_stream_is_an_image_or_a_refusal(encoded: tuple[Path, Path]) -> None:
    _, path = encoded
    rng = np.random.default_rng(5)
    dataset = dcmread(path)
    stream = next(generate_frames(dataset.PixelData, number_of_frames=1))
    reasons = set()
    for _ in range(25):
        damaged = bytearray(stream)
        for at in rng.integers(0, len(damaged), 4):
            damaged[at] ^= 1 << rng.integers(8)
        dataset.PixelData = encapsulate([bytes(damaged)])
        dataset.save_as(path)
        try:
            decode(path)
        except NotAnalysable as named:
            reasons.add(named.reason)
    assert reasons <= {Reason.UNREADABLE_PIXELS}


def test_a_code_stream_that_claims_to_be_larger_is_never_decoded(
    encoded: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """65535 x 65535 pixels of 16 bits are 8 GB."""
    _, path = encoded
    dataset = dcmread(path)
    stream = next(generate_frames(dataset.PixelData, number_of_frames=1))
    if dataset.file_meta.TransferSyntaxUID == RLELossless:
        return  # a run says no size: its decoder makes as much as the header says, or refuses
    in_jpeg = (64).to_bytes(2, "big") + (48).to_bytes(2, "big")
    in_jpeg_2000 = (48).to_bytes(4, "big") + (64).to_bytes(4, "big")
    for size in (in_jpeg_2000, in_jpeg):
        stream = stream.replace(size, b"\xff" * len(size), 1)
    dataset.PixelData = encapsulate([stream])
    dataset.save_as(path)
    monkeypatch.setattr("phoi_models.reading.pixels.get_decoder", None)
    with pytest.raises(NotAnalysable, match="another size than its header says"):
        decode(path)


# --- headers ----------------------------------------------------------------------------------

Change = Callable[[Dataset, int], object]


def private_before_pixels(dataset: Dataset, z: int) -> None:
    """Private elements of known, unknown and wrong VR on both sides of the public ones."""
    block = dataset.private_block(0x0009, "ANY VENDOR 1.0", create=True)
    block.add_new(0x01, "LO", "text")
    block.add_new(0x02, "UN", bytes(range(256)) * 4)
    late = dataset.private_block(0x7FDF, "ANY VENDOR 1.0", create=True)
    late.add_new(0x01, "OB", b"\x7f\xe0\x00\x10" * 50)
    late.add_new(0x02, "UN", b"\xe0\x7f\x10\x00OW\0\0\xff\xff\xff\xff")
    dataset[0x00181030] = DataElement(0x00181030, "UN", b"what VR was this")


def long_decimals(dataset: Dataset, z: int) -> None:
    """More than the 16 characters that a Decimal String may have, as many write them."""
    for keyword in ("ImagePositionPatient", "PixelSpacing", "ImageOrientationPatient"):
        values = "\\".join(f"{float(v):+.17f}" for v in dataset[keyword].value)
        with disable_value_validation():
            dataset[keyword] = DataElement(keyword, "DS", values)


def unnumbered(dataset: Dataset, z: int) -> None:
    del dataset.InstanceNumber


def numbered_alike(dataset: Dataset, z: int) -> None:
    dataset.InstanceNumber = 7


def without_thickness(dataset: Dataset, z: int) -> None:
    dataset.SliceThickness = None


def padded_pixels(dataset: Dataset, z: int) -> None:
    dataset.PixelData = dataset.PixelData + b"\0" * 4


def white_is_low(dataset: Dataset, z: int) -> None:
    """How grey values are shown says nothing of what they mean (PS3.3 C.7.6.3.1.2)."""
    dataset.PhotometricInterpretation = "MONOCHROME1"


def without_rescale_type(dataset: Dataset, z: int) -> None:
    del dataset.RescaleType


def own_rescale(dataset: Dataset, z: int) -> None:
    """Another slope and intercept in each slice, as scanners of PET/CT write them."""
    hu = np.frombuffer(dataset.PixelData, np.uint16).astype(float) - 1024
    slope, intercept = 0.5 + z / 100, -1100.25 - z
    dataset.RescaleSlope, dataset.RescaleIntercept = f"{slope:.3f}", f"{intercept:.3f}"
    dataset.PixelData = np.rint((hu - intercept) / slope).astype(np.uint16).tobytes()


def negative_slope(dataset: Dataset, z: int) -> None:
    stored = np.frombuffer(dataset.PixelData, np.uint16).astype(int)
    dataset.RescaleSlope, dataset.RescaleIntercept = "-1", "3000"
    dataset.PixelData = (3000 - (stored - 1024)).astype(np.uint16).tobytes()


READ_ALL_THE_SAME: Mapping[str, Change] = {
    change.__name__: change
    for change in (
        private_before_pixels,
        long_decimals,
        unnumbered,
        numbered_alike,
        without_thickness,
        padded_pixels,
        white_is_low,
        without_rescale_type,
        own_rescale,
        negative_slope,
    )
}


@pytest.mark.parametrize("transfer_syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("change", READ_ALL_THE_SAME.values(), ids=READ_ALL_THE_SAME)
def test_what_scanners_write_is_read_all_the_same(
    tmp_path: Path, chest: Volume, change: Change, transfer_syntax: str
) -> None:
    options = SeriesOptions(transfer_syntax=transfer_syntax)
    for z, path in enumerate(write_series(tmp_path, chest, options)):
        dataset = dcmread(path)
        change(dataset, z)
        dataset.save_as(path)
    choice, volume = read(tmp_path)
    assert np.abs(volume.hu.astype(int) - chest.hu).max() <= (change is own_rescale)
    assert len(choice.slices) == 21


@pytest.mark.filterwarnings("ignore:Expected .*plicit VR")
@pytest.mark.parametrize(
    ("said", "written"),
    [
        (ExplicitVRLittleEndian, ImplicitVRLittleEndian),
        (ImplicitVRLittleEndian, ExplicitVRLittleEndian),
    ],
)
def test_a_mislabelled_transfer_syntax_is_seen_through(
    tmp_path: Path, chest: Volume, said: str, written: str
) -> None:
    for path in write_series(tmp_path, chest, SeriesOptions(transfer_syntax=written)):
        content = path.read_bytes()
        padded = [uid.encode() + b"\0" * (len(uid) % 2) for uid in (written, said)]
        head = b"\x02\x00\x10\x00UI"
        meta = [head + len(uid).to_bytes(2, "little") + uid for uid in padded]
        grown = len(meta[1]) - len(meta[0])
        length = int.from_bytes(content[140:144], "little") + grown
        changed = content.replace(meta[0], meta[1], 1)
        path.write_bytes(changed[:140] + length.to_bytes(4, "little") + changed[144:])
    assert np.array_equal(read(tmp_path)[1].hu, chest.hu)


@pytest.mark.parametrize(
    ("options", "unsaid"),
    [
        (SeriesOptions(padding_value=63536), ()),
        (SeriesOptions(padding_value=63536), ("PixelPaddingValue",)),  # its sign is lost, unsaid
        (SeriesOptions(padding_value=-3024, signed=True, intercept=0.0), ("PixelPaddingValue",)),
        (SeriesOptions(padding_value=-2000, signed=True, intercept=0.0), ()),
        (SeriesOptions(padding_value=0, intercept=-8192.0), ()),
    ],
)
def test_outside_the_field_of_view_is_air(
    tmp_path: Path, chest: Volume, options: SeriesOptions, unsaid: tuple[str, ...]
) -> None:
    for path in write_series(tmp_path, chest, options):
        edit(path, lambda d: remove(d, unsaid))
    _, volume = read(tmp_path)
    assert (volume.hu[:, 0, :4] == AIR_HU).all()
    assert np.array_equal(volume.hu[:, 32, 2:-2], chest.hu[:, 32, 2:-2])


def test_a_range_of_padding_values_is_air(tmp_path: Path, chest: Volume) -> None:
    """Pixel Padding Range Limit (0028,0121)."""
    for path in write_series(
        tmp_path, chest, SeriesOptions(padding_value=-2000, signed=True, intercept=0.0)
    ):
        dataset = dcmread(path)
        pixels = np.frombuffer(dataset.PixelData, np.int16).copy()
        pixels[:3] = (-2100, -1999, -1500)
        dataset.PixelData = pixels.tobytes()
        dataset["PixelPaddingValue"] = DataElement("PixelPaddingValue", "SS", -2100)
        dataset["PixelPaddingRangeLimit"] = DataElement("PixelPaddingRangeLimit", "SS", -1500)
        dataset.save_as(path)
    _, volume = read(tmp_path)
    assert (volume.hu[:, 0, :3] == AIR_HU).all()
    assert np.array_equal(volume.hu[:, 32, 2:-2], chest.hu[:, 32, 2:-2])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: delattr(d, "RescaleIntercept"), Reason.NOT_HOUNSFIELD),
        (lambda d: setattr(d, "RescaleType", "Z_EFF"), Reason.NOT_HOUNSFIELD),
        (lambda d: setattr(d, "Rows", 63), Reason.UNREADABLE_PIXELS),
        (
            lambda d: d.update({"Rows": 32, "PixelData": d.PixelData[: 32 * 96]}),
            Reason.INCONSISTENT_GEOMETRY,
        ),
        (lambda d: d.update({"Rows": 65535, "Columns": 65535}), Reason.UNREADABLE_PIXELS),
        (lambda d: setattr(d, "NumberOfFrames", 10**9), Reason.INCONSISTENT_GEOMETRY),
        (lambda d: delattr(d, "PixelData"), Reason.UNREADABLE_PIXELS),
        (lambda d: setattr(d, "HighBit", 40), Reason.UNREADABLE_PIXELS),
    ],
)
def test_what_cannot_be_is_refused_by_name_before_memory_is_given_for_it(
    tmp_path: Path, chest: Volume, change: Callable[[Dataset], object], reason: Reason
) -> None:
    path = write_series(tmp_path, chest)[4]
    uid = str(edit(path, change).SOPInstanceUID)
    found = refusal(tmp_path)
    assert found.reason is reason
    assert uid in found.detail or reason is Reason.INCONSISTENT_GEOMETRY


def test_what_inflates_without_bound_is_refused_while_it_does(
    tmp_path: Path, chest: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand bytes deflate to one; the bound is lower here, to save time."""
    monkeypatch.setattr("phoi_models.reading.ct_image._LARGEST_INFLATED", 64 << 20)
    options = SeriesOptions(transfer_syntax=DeflatedExplicitVRLittleEndian)
    path = write_series(tmp_path, chest, options)[4]
    content = path.read_bytes()
    end_of_meta = 144 + int.from_bytes(content[140:144], "little")
    header = zlib.decompress(content[end_of_meta:], -zlib.MAX_WBITS)
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    bomb = [content[:end_of_meta], deflater.compress(header)]
    bomb += [deflater.compress(bytes(1 << 24)) for _ in range(8)]
    path.write_bytes(b"".join([*bomb, deflater.flush()]))
    assert path.stat().st_size < 400_000

    tracemalloc.start()
    try:
        found = refusal(tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert found.reason is Reason.UNREADABLE_PIXELS
    assert found.detail.endswith("it inflates to more than 64 MB")
    assert peak < 20_000_000


def test_uneven_slices_are_refused_by_name(tmp_path: Path, chest: Volume) -> None:
    for z, path in enumerate(write_series(tmp_path, chest)):
        dataset = dcmread(path)
        dataset.ImagePositionPatient[2] += 2 * (z % 2)
        dataset.save_as(path)
    found = refusal(tmp_path)
    assert found.reason is Reason.MISSING_SLICES
    assert found.detail == "the slices lie unevenly, 3.00 to 7.00 mm apart"


def as_other_instances(paths: tuple[Path, ...], change: Callable[[Dataset], object]) -> None:
    """Write each file once more, as an instance of its own."""
    for path in paths:
        dataset = dcmread(path)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        change(dataset)
        dataset.save_as(path.with_name(f"again-{path.name}"))


def test_a_header_that_was_damaged_is_read_anew_once_its_file_came_again(
    tmp_path: Path, chest: Volume
) -> None:
    """The same path, the same size; read by a reader that has seen the damaged one."""
    path = write_series(tmp_path, chest)[4]
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"-1024 ", b"-1924 ", 1))
    instances = instances_in(tmp_path)
    reader = DicomSeriesReader(tmp_path)
    damaged = reader.read(reader.choose(instances))
    assert not np.array_equal(damaged.hu, chest.hu)
    path.unlink()
    path.write_bytes(whole)
    assert np.array_equal(reader.read(reader.choose(instances)).hu, chest.hu)


def test_headers_are_remembered_up_to_a_number_of_frames(
    tmp_path: Path, chest: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An enhanced CT of 600 frames takes as much memory as 600 slices."""
    monkeypatch.setattr("phoi_edge_node.dicom.series_reader._REMEMBERED_FRAMES", 50)
    for number in range(4):
        write_enhanced(tmp_path / f"{number}.dcm", chest, SeriesOptions(series=number))
    reader = DicomSeriesReader(tmp_path)
    choice = reader.choose(instances_in(tmp_path))
    assert np.array_equal(reader.read(choice).hu, chest.hu)
    remembered = reader._headers._read.values()
    assert sum(len(image.slices) for image in remembered) == 2 * 21


def test_localizers_and_screens_among_the_slices_are_left_out(
    tmp_path: Path, chest: Volume
) -> None:
    """A localizer shows no plane, and a page with the dose has neither position nor HU."""
    paths = write_series(tmp_path, chest)

    def localizer(dataset: Dataset) -> None:
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]

    def screen(dataset: Dataset) -> None:
        dataset.ImageType = ["DERIVED", "SECONDARY", "SCREEN SAVE"]
        for keyword in ("ImagePositionPatient", "PixelSpacing", "RescaleSlope"):
            delattr(dataset, keyword)

    as_other_instances(paths[:1], localizer)
    as_other_instances(paths[1:2], screen)
    assert np.array_equal(read(tmp_path)[1].hu, chest.hu)


def test_two_acquisitions_in_one_series_are_told_apart(tmp_path: Path, chest: Volume) -> None:
    paths = write_series(tmp_path, chest)

    def second(dataset: Dataset) -> None:
        dataset.AcquisitionNumber = 2
        dataset.PixelData = (np.frombuffer(dataset.PixelData, np.uint16) + 100).tobytes()

    as_other_instances(paths, second)
    choice, volume = read(tmp_path)
    assert len(choice.slices) == 21
    assert set(np.unique(volume.hu - chest.hu)) in ({0}, {100})


@pytest.mark.parametrize("whole", [True, False])
def test_acquisitions_that_lie_between_each_other_are_no_thinner_scan(
    tmp_path: Path, chest: Volume, *, whole: bool
) -> None:
    """Of 5 mm each, and 2.5 mm apart."""
    paths = write_series(tmp_path, chest)

    def second(dataset: Dataset) -> None:
        dataset.AcquisitionNumber = 2
        dataset.ImagePositionPatient[2] += 2.5
        dataset.PixelData = (np.frombuffer(dataset.PixelData, np.uint16) + 100).tobytes()

    as_other_instances(paths, second)
    if not whole:  # one slice of each took the number of the other
        for path in (paths[5], paths[5].with_name(f"again-{paths[5].name}")):
            edit(path, lambda d: setattr(d, "AcquisitionNumber", 3 - d.AcquisitionNumber))
        found = refusal(tmp_path)
        assert found.reason is Reason.INCONSISTENT_GEOMETRY
        assert found.detail == "slices of 2 acquisitions alternate along the patient"
        return
    choice, volume = read(tmp_path)
    assert set(np.unique(volume.hu - chest.hu)) in ({0}, {100})
    assert choice.passed_over == {
        choice.series_instance_uid: "21 slices of other acquisitions, stacks or times in the "
        "chosen series"
    }


def test_acquisitions_that_follow_one_another_are_one_scan(tmp_path: Path, chest: Volume) -> None:
    for number, path in enumerate(write_series(tmp_path, chest)):
        edit(path, lambda d, n=number // 4: setattr(d, "AcquisitionNumber", n))  # type: ignore[misc]
    choice, volume = read(tmp_path)
    assert np.array_equal(volume.hu, chest.hu)
    assert choice.passed_over == {}


def test_half_a_chest_is_not_taken_for_a_whole_one(tmp_path: Path, chest: Volume) -> None:
    """The second acquisition goes on where the first one ends, and repeats its last slices."""
    long = Volume(
        np.concatenate([chest.hu, chest.hu]),
        Geometry((42, 64, 48), (5.0, 3.0, 3.0), (-70, -90, -50), chest.geometry.axes_lps),
    )
    paths = write_series(tmp_path, long)
    for path in paths[21:]:
        edit(path, lambda d: setattr(d, "AcquisitionNumber", 2))
    as_other_instances(paths[18:21], lambda d: setattr(d, "AcquisitionNumber", 2))
    assert refusal(tmp_path).reason is Reason.DUPLICATE_SLICES


def test_one_acquisition_twice_is_refused_by_name(tmp_path: Path, chest: Volume) -> None:
    as_other_instances(write_series(tmp_path, chest), lambda _: None)
    found = refusal(tmp_path)
    assert found.reason is Reason.DUPLICATE_SLICES
    assert found.detail == "21 of 42 slices lie where another one lies"


# --- enhanced multi-frame ---------------------------------------------------------------------


def assert_same_ct(choice: SeriesChoice, volume: Volume, chest: Volume) -> None:
    assert np.array_equal(volume.hu, chest.hu)
    assert np.allclose(volume.geometry.origin_lps_mm, chest.geometry.origin_lps_mm)
    assert np.allclose(volume.geometry.axes_lps, chest.geometry.axes_lps)
    assert np.allclose(volume.geometry.spacing_mm, chest.geometry.spacing_mm)
    assert len(choice.instances) == 1
    assert choice.reason == "the only suitable series: 21 slices of 5 mm"


@pytest.mark.parametrize(
    "frames",
    [FrameOptions(), FrameOptions(shared=False), FrameOptions(localizers=2)],
    ids=["shared", "per-frame", "localizers"],
)
@pytest.mark.parametrize("transfer_syntax", MULTI_FRAME_ENCODINGS)
def test_an_enhanced_ct_is_its_frames_by_position(
    tmp_path: Path, chest: Volume, frames: FrameOptions, transfer_syntax: str
) -> None:
    path = tmp_path / "plain"
    dataset = write_enhanced(path, chest, SeriesOptions(header=TWELVE_BITS), frames)
    MULTI_FRAME_ENCODINGS[transfer_syntax](path, tmp_path / "enhanced.dcm")

    choice, volume = read(tmp_path)

    assert dcmread(tmp_path / "enhanced.dcm").file_meta.TransferSyntaxUID == transfer_syntax
    assert_same_ct(choice, volume, chest)
    for z in (0, 7, 20):
        number = choice.slices[z].frame
        assert number is not None
        position = dataset.PerFrameFunctionalGroupsSequence[number - 1].PlanePositionSequence[0]
        place = volume.geometry.index_to_lps((z, 0, 0))
        assert np.allclose(position.ImagePositionPatient, place)


@pytest.mark.parametrize(("technique", "slices"), [("MPR", True), ("MAX_IP", False)])
def test_projections_of_a_volume_are_no_slices(
    tmp_path: Path, chest: Volume, technique: str, *, slices: bool
) -> None:
    """Volume Based Calculation Technique (0008,9207), of each frame."""
    path = tmp_path / "a.dcm"
    dataset = write_enhanced(path, chest)
    for groups in dataset.PerFrameFunctionalGroupsSequence:
        groups.CTImageFrameTypeSequence[0].VolumeBasedCalculationTechnique = technique
    dataset.save_as(path, enforce_file_format=True)
    if slices:
        assert_same_ct(*read(tmp_path), chest)
    else:
        assert refusal(tmp_path).detail == "localizers or projections only"


def test_a_legacy_converted_ct_is_what_it_was_converted_from(tmp_path: Path, chest: Volume) -> None:
    sources = write_series(tmp_path / "classic", chest)
    write_legacy_converted(tmp_path / "converted.dcm", sources)
    assert_same_ct(*read(tmp_path), chest)


def test_of_several_stacks_one_is_analysed(tmp_path: Path, chest: Volume) -> None:
    write_enhanced(tmp_path / "a.dcm", chest, frames=FrameOptions(phases=2))
    choice, volume = read(tmp_path)
    assert len(choice.slices) == 21
    assert set(np.unique(volume.hu - chest.hu)) in ({0}, {10})


def test_frames_that_are_claimed_and_not_described_are_refused(
    tmp_path: Path, chest: Volume
) -> None:
    write_enhanced(tmp_path / "a.dcm", chest)
    edit(tmp_path / "a.dcm", lambda d: setattr(d, "NumberOfFrames", 10**9))
    assert refusal(tmp_path).reason is Reason.INCONSISTENT_GEOMETRY


def test_frames_whose_pixels_are_missing_are_refused(tmp_path: Path, chest: Volume) -> None:
    write_enhanced(tmp_path / "a.dcm", chest)
    content = (tmp_path / "a.dcm").read_bytes()
    (tmp_path / "a.dcm").write_bytes(content[:-5000])
    assert refusal(tmp_path).reason is Reason.UNREADABLE_PIXELS


@pytest.mark.parametrize("form", ["enhanced", "legacy-converted"])
def test_dcmtk_sends_multi_frame_ct(
    tmp_path: Path, scp: StorageScp, inbox: Inbox, files: InstanceFiles, chest: Volume, form: str
) -> None:
    path = tmp_path / "ct.dcm"
    if form == "enhanced":
        write_enhanced(path, chest)
    else:
        write_legacy_converted(path, write_series(tmp_path / "classic", chest))
    inbox.instances.clear()

    done = storescu(scp.port, path)

    assert done.returncode == 0, done.stderr
    reader = DicomSeriesReader(files.root)
    choice = reader.choose(inbox.instances)
    assert_same_ct(choice, reader.read(choice), chest)


# --- names ------------------------------------------------------------------------------------

VIETNAMESE = "Nguyễn^Thị Ánh Tuyết"
JAPANESE = "Yamada^Tarou=山田^太郎=やまだ^たろう"
KOREAN = "Hong^Gildong=洪^吉洞=홍^길동"
CHINESE = "Wang^XiaoDong=王^小东"


@pytest.mark.parametrize(
    ("name", "character_sets", "label"),
    [
        (VIETNAMESE, "ISO_IR 192", b"ISO_IR 192"),
        (VIETNAMESE, "ISO_IR 192", b"ISO_IR 100"),  # UTF-8 under the name of Latin-1
        (VIETNAMESE, "ISO_IR 192", b" " * 10),
        (JAPANESE, ["", "ISO 2022 IR 87"], b""),
        (KOREAN, ["", "ISO 2022 IR 149"], b""),
        (CHINESE, "GB18030", b""),
    ],
)
def test_a_name_is_the_same_in_the_index_and_in_the_report(
    tmp_path: Path, chest: Volume, name: str, character_sets: str | list[str], label: bytes
) -> None:
    """What the page shows is what the index holds."""
    for path in write_series(tmp_path / "ct", chest):
        dataset = dcmread(path)
        dataset.ReferringPhysicianName, dataset.StudyDescription = "Tran^Duc", "CT"
        dataset.SpecificCharacterSet, dataset.PatientName = character_sets, name
        dataset.save_as(path)
        path.write_bytes(path.read_bytes().replace(b"ISO_IR 192", label or b"ISO_IR 192"))
    instances = tuple(instances_in(tmp_path / "ct"))
    assert {instance.study.patient.name for instance in instances} == {name}

    images = Images(tmp_path / "ct", instances, chest)
    case = replace(case_of(images, Outcome.NEGATIVE), study=instances[0].study)
    for document in DicomEncoder(images.root, CountingUids(), "0.1.0").encode(case):
        path = tmp_path / f"{document.kind.value}.dcm"
        path.write_bytes(document.content)
        assert dcmdump_value(path, "0010,0010") == name
