"""A whole hospital, once for all acceptance tests that only add studies to it.

And a watch over all of them: no planted patient may appear where none may. It judges when
everything else has ended, and what it found fails the session.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from phoi_edge_node.sample import default_cache
from phoi_edge_node.settings import MlflowSettings
from phoi_edge_node.stand_ins import hospital as hospital_module
from phoi_edge_node.stand_ins.hospital import Hospital, Ports, hospital
from phoi_edge_node.stand_ins.mlflow import MlflowServer, mlflow_server
from phoi_edge_node.stand_ins.program import free_port
from pydicom import dcmread
from support import planted
from support.real_ct import lidc_idri_0001
from support.watch import Watch

WATCH = pytest.StashKey[Watch]()


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("numprocesses", None) or hasattr(config, "workerinput"):
        raise pytest.UsageError("run tests/acceptance in one process: -n 0 (it is being watched)")
    config.stash[WATCH] = Watch()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if call.when == "teardown":  # by then all that was captured is there
        watch = item.config.stash[WATCH]
        for title, text in report.sections:
            watch.saw("captured", f"{item.nodeid}: {title}", text)
    return report


@pytest.fixture(scope="session", autouse=True)
def watch(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watch]:
    """Looks while the tests run, and at what they leave behind."""
    watch = pytestconfig.stash[WATCH]
    with watch.processes(), watch.pages():
        yield watch
    watch.look_at_files(tmp_path_factory.getbasetemp())


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Only now is known what was captured of the last test, and of the end of all fixtures."""
    if session.config.stash[WATCH].told():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if told := config.stash[WATCH].told():
        terminalreporter.section("A PLANTED PATIENT IS WHERE NONE MAY BE", red=True, bold=True)
        terminalreporter.write_line(told)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory, watch: Watch) -> Iterator[Hospital]:
    folder: Path = tmp_path_factory.mktemp("hospital")

    @contextmanager
    def recorded(mlflow: Path, port: int) -> Iterator[MlflowServer]:
        with mlflow_server(mlflow, free_port()) as server, watch.relay_to(server.url, port) as url:
            yield MlflowServer(url, server.log)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hospital_module, "mlflow_server", recorded)
        with hospital(folder, default_cache(), Ports()) as running:
            yield running


@pytest.fixture(scope="session")
def mlflow_settings(mlflow_settings: MlflowSettings, watch: Watch) -> Iterator[MlflowSettings]:
    """Of the server that all tests share, by way of the watch."""
    with watch.relay_to(mlflow_settings.tracking_uri) as url:
        yield mlflow_settings.model_copy(update={"tracking_uri": url})


@pytest.fixture(scope="session")
def planted_ct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LIDC-IDRI-0001 under a planted patient's name: its folder."""
    folder = tmp_path_factory.mktemp("planted") / "ct"
    folder.mkdir()
    for number, path in enumerate(sorted(lidc_idri_0001().rglob("*.dcm"))):
        dataset = dcmread(path)
        dataset.SpecificCharacterSet = "ISO_IR 192"
        dataset.PatientName = planted.NAME
        dataset.PatientID = planted.PATIENT_ID
        dataset.IssuerOfPatientID = planted.ISSUER
        dataset.PatientBirthDate = planted.BIRTH_DATE
        dataset.AccessionNumber = planted.ACCESSION_NUMBER
        dataset.save_as(folder / f"{number:03}.dcm")
    return folder
