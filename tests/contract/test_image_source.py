"""What every ``ImageSource`` promises, the fake as well as the real ones against Orthanc.

A new source adds one function to ``ARCHIVES``. Each archive holds the same: a CT study of two
series, and another patient's study of the same day.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from phoi_edge_node.dicom.dicomweb import DicomwebSource
from phoi_edge_node.dicom.instance_files import InstanceFiles
from phoi_edge_node.dicom.query_retrieve import DicomSource
from phoi_edge_node.dicom.storage_scp import StorageScp
from phoi_edge_node.dicom.taking import InstanceTaker
from phoi_edge_node.errors import SourceUnavailable
from phoi_edge_node.ports import ImageSource, Intake, ReceivedInstance
from phoi_edge_node.settings import ArchiveSettings, DicomSettings
from phoi_edge_node.stand_ins.program import free_port
from phoi_edge_node.system import SystemClock
from phoi_edge_node.testing import FakeImageSource
from phoi_models.geometry import Geometry
from phoi_models.volume import Volume
from support.dicom_phantom import SeriesOptions, make_series, write_series
from support.orthanc import DICOM_WEB, Orthanc, orthanc

ONE = SeriesOptions(series=1)
TWO = SeriesOptions(series=2)
OTHERS = SeriesOptions(study=2, patient_id="PHANTOM-2", patient_name="Trần^Văn Bình")
STUDY = ONE.study_instance_uid
THE_DAY = date(2026, 3, 15)
SECRETS = ("Nguy", "Tuy", "PHANTOM", "1960")


def chest(slices: int) -> Volume:
    geometry = Geometry(
        shape=(slices, 8, 8),
        spacing_mm=(2.0, 1.0, 1.0),
        origin_lps_mm=(0.0, 0.0, 0.0),
        axes_lps=((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0)),
    )
    return Volume(np.zeros(geometry.shape, dtype=np.int16), geometry)


SLICES = {ONE: 104, TWO: 5, OTHERS: 3}


def names(options: SeriesOptions) -> set[str]:
    return {str(d.SOPInstanceUID) for d in make_series(chest(SLICES[options]), options)}


class Kept:
    """A receiver that remembers what came, and what of it is still on its way."""

    def __init__(self) -> None:
        self.instances: dict[str, ReceivedInstance] = {}
        self.open: set[str] = set()

    def instance_received(self, instance: ReceivedInstance, association: str) -> Intake:
        self.open.add(association)
        known = instance.sop_instance_uid in self.instances
        self.instances[instance.sop_instance_uid] = instance
        return Intake.DUPLICATE if known else Intake.STORED

    def association_released(self, association: str) -> None:
        self.open.discard(association)


@dataclass(frozen=True)
class Archive:
    """One kind of source.

    Attributes:
        up: may be asked and fetched from.
        down: nobody listens.
        came: SOP Instance UIDs of what was received through it so far.
    """

    up: ImageSource
    down: ImageSource
    came: Callable[[], set[str]]


@contextmanager
def fake(_: Path) -> Iterator[Archive]:
    came: set[str] = set()
    held = {options.series_instance_uid: names(options) for options in (ONE, TWO)}
    up = FakeImageSource(STUDY, held, THE_DAY, came.add)
    down = FakeImageSource(STUDY, held, THE_DAY, came.add)
    down.silent = True
    yield Archive(up, down, lambda: came)


def fill(archive: Orthanc, folder: Path) -> None:
    for options, slices in SLICES.items():
        paths = write_series(folder / options.series_instance_uid, chest(slices), options)
        for path in paths:
            archive.upload(path)


@contextmanager
def dicomweb(folder: Path) -> Iterator[Archive]:
    kept = Kept()
    dicom = DicomSettings(minimum_free_disk_mb=0)
    taker = InstanceTaker(dicom, InstanceFiles(folder / "instances"), kept, SystemClock())
    with orthanc(folder / "orthanc", plugins=(DICOM_WEB,)) as archive:
        fill(archive, folder / "images")

        def at(port: int) -> DicomwebSource:
            settings = ArchiveSettings(
                ae_title="ORTHANC",
                host="127.0.0.1",
                port=archive.dicom_port,
                timeout_s=20,
                query=True,
                retrieve="wado-rs",
                dicomweb=f"http://127.0.0.1:{port}/dicom-web/",
            )
            return DicomwebSource(settings, taker)

        def came() -> set[str]:
            assert not kept.open, "the association was not released"
            return set(kept.instances)

        yield Archive(at(archive.http_port), at(free_port()), came)


@contextmanager
def dimse(folder: Path, retrieve: str) -> Iterator[Archive]:
    port, kept, clock = free_port(), Kept(), SystemClock()
    dicom = DicomSettings(port=port, minimum_free_disk_mb=0)
    taker = InstanceTaker(dicom, InstanceFiles(folder / "instances"), kept, clock)
    scp = StorageScp(dicom, taker, clock)
    phoi = {"phoi": ["PHOI", "127.0.0.1", port]}
    with orthanc(folder / "orthanc", DicomModalities=phoi, SynchronousCMove=True) as archive:
        fill(archive, folder / "images")

        def at(dicom_port: int) -> DicomSource:
            settings = ArchiveSettings.model_validate(
                {
                    "ae_title": "ORTHANC",
                    "host": "127.0.0.1",
                    "port": dicom_port,
                    "timeout_s": 20,
                    "query": True,
                    "retrieve": retrieve,
                }
            )
            return DicomSource(settings, dicom.ae_title, taker)

        def came() -> set[str]:
            assert not kept.open or retrieve == "c-move", "the association was not released"
            return set(kept.instances)

        scp.start()
        try:
            yield Archive(at(archive.dicom_port), at(free_port()), came)
        finally:
            scp.stop()


ARCHIVES: dict[str, Callable[[Path], AbstractContextManager[Archive]]] = {
    "fake": fake,
    "c-get": lambda folder: dimse(folder, "c-get"),
    "c-move": lambda folder: dimse(folder, "c-move"),
    "dicomweb": dicomweb,
}


@pytest.fixture(scope="module", params=ARCHIVES)
def archive(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Archive]:
    folder = tmp_path_factory.mktemp("archive")
    # Without it Nagle's algorithm costs 40 ms an image.
    with mock.patch.dict(os.environ, TCP_NODELAY="1"), ARCHIVES[request.param](folder) as made:
        yield made


def test_counts_the_images_of_each_series(archive: Archive) -> None:
    told = {s.series_instance_uid: (s.modality, s.instances) for s in archive.up.series(STUDY)}
    assert told == {
        ONE.series_instance_uid: ("CT", SLICES[ONE]),
        TWO.series_instance_uid: ("CT", SLICES[TWO]),
    }


def test_names_the_images_of_one_series(archive: Archive) -> None:
    assert archive.up.instances(STUDY, TWO.series_instance_uid).sop_instance_uids == names(TWO)


def test_does_not_know_what_it_does_not_hold(archive: Archive) -> None:
    assert list(archive.up.series("1.2.3.4")) == []
    assert not archive.up.instances("1.2.3.4", TWO.series_instance_uid).in_all
    assert not archive.up.instances(STUDY, "1.2.3.4").in_all


def test_names_the_ct_studies_of_some_days(archive: Archive) -> None:
    found = {s.study_instance_uid: s for s in archive.up.studies(THE_DAY, THE_DAY)}
    assert STUDY in found
    assert found[STUDY].modalities == {"CT"}
    assert not archive.up.studies(date(2020, 1, 1), date(2020, 1, 31))


def test_knows_no_documents_where_there_are_only_images(archive: Archive) -> None:
    assert set(archive.up.documents(STUDY)) == set()


def test_fetches_just_the_images_that_were_asked_for(archive: Archive) -> None:
    before, wanted = set(archive.came()), set(sorted(names(ONE))[:3])
    assert archive.up.can_fetch
    assert archive.up.fetch(STUDY, ONE.series_instance_uid, wanted) == 3
    assert archive.came() - before == wanted


def test_fetches_a_whole_series(archive: Archive) -> None:
    assert archive.up.fetch(STUDY, TWO.series_instance_uid, ()) == SLICES[TWO]
    assert names(TWO) <= archive.came()


def test_fetches_more_images_than_fit_one_request(archive: Archive) -> None:
    assert archive.up.fetch(STUDY, ONE.series_instance_uid, names(ONE)) == SLICES[ONE]
    assert names(ONE) <= archive.came()
    assert not names(OTHERS) & archive.came()


def test_says_so_where_not_all_could_be_fetched(archive: Archive) -> None:
    some = next(iter(names(TWO)))
    with pytest.raises(SourceUnavailable):
        archive.up.fetch(STUDY, TWO.series_instance_uid, {some, "1.2.3.4.5"})


def test_nobody_there_is_told_in_plain_words(archive: Archive) -> None:
    asks: list[Callable[[], object]] = [
        lambda: archive.down.studies(THE_DAY, THE_DAY),
        lambda: archive.down.series(STUDY),
        lambda: archive.down.instances(STUDY, ONE.series_instance_uid),
        lambda: archive.down.fetch(STUDY, ONE.series_instance_uid, {"1.2.3"}),
    ]
    for ask in asks:
        with pytest.raises(SourceUnavailable) as told:
            ask()
        assert str(told.value)
        assert not any(secret in str(told.value) for secret in SECRETS)
