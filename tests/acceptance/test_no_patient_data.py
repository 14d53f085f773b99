"""No planted patient in any log, metric, trace, error page or request to MLflow.

The watch of ``conftest.py`` looks over all acceptance tests. Here everything goes wrong on purpose,
each time with a planted value in what goes wrong; and the watch is shown to find what leaks.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from phoi_edge_node.accounts import Account, Role, hash_password
from phoi_edge_node.bootstrap import open_storage
from phoi_edge_node.settings import MlflowSettings, read_settings
from phoi_edge_node.stand_ins.hospital import Hospital, Program
from phoi_edge_node.stand_ins.program import free_port
from phoi_edge_node.store import StoredAccount
from phoi_edge_node.system import SystemClock
from pydicom.config import disable_value_validation
from support.dcmtk import storescu
from support.dicom_peers import answering_scp
from support.dicom_phantom import SeriesOptions, short_study
from support.fhir_peers import fhir_peer
from support.mllp_peers import acknowledging, mllp_peer
from support.outside import Page, wait_for
from support.planted import ACCESSION_NUMBER, BIRTH_DATE, NAME, PATIENT_ID
from support.watch import CHANNELS, LEAKS_FOR, Watch

PHOI = Path(sys.executable).with_name("phoi")
WORDS = f"patient {NAME.replace('^', ' ')}, born 29/02/1960, {PATIENT_ID}, {ACCESSION_NUMBER}"
STOW_TOKEN = "a-long-random-token-of-this-test"
SLICES = 12
ORDER = (
    "MSH|^~\\&|HIS|BV|PHOI|BV|20260315||{kind}|{id}|P|2.5.1|||||||UNICODE UTF-8\r"
    f"PID|1||{PATIENT_ID}^^^BVTRONG^MR||{NAME}||{BIRTH_DATE}|F\r{{rest}}\r"
)
BAD_ORDERS = (
    ("ORM^O01^ORM_O01", f"ORC|QQ|{ACCESSION_NUMBER}\rOBR|1|{ACCESSION_NUMBER}||CT"),
    ("ORM^O01^ORM_O01", f"ZZZ|{WORDS}"),
    ("ADT^A24^ADT_A24", f"MRG|{WORDS}"),
    (WORDS, WORDS),
)
BAD_ADDRESSES = (
    "/nowhere/{}",
    "/studies/{}",
    "/studies/1.2.3/revisions/{}/viewer.json",
    "/?patient={}",
    "/dicom-web/studies?PatientName={}",
    "/static/{}",
    "/metrics/?name[]={}",
)


@dataclass(frozen=True)
class Troubled:
    """A node that everybody refuses, in words that name the patient."""

    folder: Path
    page: str
    settings_file: Path
    edge: Program
    dicom_port: int
    orders_port: int
    cds: Path

    def undelivered(self) -> bool:
        """Has each destination refused something?"""
        storage = open_storage(read_settings(self.settings_file), SystemClock())
        try:
            refused = {d.destination for d in storage.store.deliveries() if d.last_error}
        finally:
            storage.engine.dispose()
        return refused >= {"pacs", "emr-hl7", "emr-fhir"}


@contextmanager
def rejecting() -> Iterator[tuple[int, int, str]]:
    """An archive, an HL7 receiver and a FHIR server that refuse, and say of whom."""
    issue = {"code": "invalid", "diagnostics": WORDS, "details": {"text": WORDS}}
    outcome = {"resourceType": "OperationOutcome", "issue": [issue]}
    with (
        answering_scp(0xA900, comment="NGUYEN THI ANH TUYET") as archive,
        mllp_peer(acknowledging(f"AR|{{id}}|{WORDS}", f"ERR||PID^1^5|204|E|||{WORDS}")) as mllp,
        fhir_peer(422, json.dumps(outcome).encode()) as fhir,
    ):
        yield archive, mllp, fhir.base_url


@pytest.fixture(scope="module")
def troubled(
    site: Hospital, mlflow_settings: MlflowSettings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Troubled]:
    folder = tmp_path_factory.mktemp("troubled")
    web, dicom, orders = free_port(), free_port(), free_port()
    (folder / "stow.token").write_text(STOW_TOKEN)
    with ExitStack() as stack:
        archive, mllp, fhir = stack.enter_context(rejecting())
        cds = Path(stack.enter_context(tempfile.TemporaryDirectory()))  # its files' names may tell
        file = folder / "edge.toml"
        file.write_text(f"""
data = "{folder / "data"}"
retry_delays_s = [0.2]
site = {{ name = "troubled", mode = "pacs+emr", language = "en" }}
dicom = {{ port = {dicom}, quiet_time_s = 0.5, minimum_free_disk_mb = 10 }}
orders = {{ port = {orders} }}
stow = {{ bearer_token_file = "{folder / "stow.token"}" }}
watched_folder = {{ folder = "{cds}", settled_s = 0.2 }}
hl7 = {{ host = "127.0.0.1", port = {mllp} }}
fhir = {{ base_url = "{fhir}" }}
mlflow = {{ tracking_uri = "{mlflow_settings.tracking_uri}", report_every_s = 1 }}
inference = {{ workers = ["unix:{site.folder / "worker.sock"}"] }}
web = {{ port = {web} }}

[[archives]]
ae_title = "ARCHIVE"
host = "127.0.0.1"
port = {archive}
""")
        page = f"http://127.0.0.1:{web}/"
        edge = Program(
            [str(PHOI), "edge", "run", "--settings", str(file)],
            {"PHOI_HOME": str(site.home)},
            folder / "edge.log",
            lambda: _answers(f"{page}healthz"),
        )
        stack.callback(edge.stop)
        edge.start()
        yield Troubled(folder, page, file, edge, dicom, orders, cds)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2, trust_env=False).is_success
    except httpx.TransportError:
        return False


def test_the_watch_looks_at_everything_and_finds_nothing(
    troubled: Troubled, site: Hospital, watch: Watch, tmp_path: Path
) -> None:
    send_images(troubled, tmp_path)
    send_orders(troubled)
    send_by_web(troubled)
    leave_on_a_cd(troubled)
    ask_for_what_is_not(troubled)
    wait_for("refusals of all", troubled.undelivered)
    break_the_database(troubled)
    for command in ("doctor", "reconcile"):
        phoi(site, command, "--settings", troubled.settings_file)
    assert troubled.edge.stop() == 0

    watch.look_at_files(troubled.folder)
    assert watch.told() == ""
    log = (troubled.folder / "edge.log").read_text()
    for told in ("delivery tried", "message refused", "analysis ended", "page failed"):
        assert told in log
    # What is captured is known at the end of a test: that it is seen, the next test shows.
    never = [c for c in CHANNELS if c != "captured" and not watch.bytes_seen[c]]
    assert never == [], "nothing was seen of these, so nothing is known of them"


def send_images(troubled: Troubled, folder: Path) -> None:
    """A study with an impossible birth date, and one whose images cannot be read."""
    odd = (("PatientBirthDate", "29/02/1960"), ("PatientComments", WORDS))
    with disable_value_validation():
        files, _ = short_study(folder / "odd", "odd", SLICES, SeriesOptions(header=odd))
    broken, _ = short_study(folder / "broken", "broken", SLICES)
    for path in broken:
        path.write_bytes(path.read_bytes()[:-1500])
    storescu(troubled.dicom_port, *files)
    storescu(troubled.dicom_port, *broken)


def send_orders(troubled: Troubled) -> None:
    """Orders that are refused, each for another reason."""
    for number, (kind, rest) in enumerate(BAD_ORDERS):
        message = ORDER.format(kind=kind, id=number, rest=rest).encode()
        with socket.create_connection(("127.0.0.1", troubled.orders_port), timeout=20) as peer:
            peer.sendall(b"\x0b" + message + b"\x1c\r")
            assert b"MSA|A" in peer.recv(65536)


def send_by_web(troubled: Troubled) -> None:
    """STOW-RS of something that is no image, with and without the right to."""
    headers = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=b'}
    body = b"--b\r\nContent-Type: application/dicom\r\n\r\n" + WORDS.encode() + b"\r\n--b--"
    for token in ("wrong", STOW_TOKEN):
        answer = httpx.post(
            f"{troubled.page}dicom-web/studies",
            content=body,
            headers={**headers, "Authorization": f"Bearer {token}"},
            trust_env=False,
            timeout=60,
        )
        assert answer.is_error


def leave_on_a_cd(troubled: Troubled) -> None:
    """A file that is no image, named after the patient."""
    (troubled.cds / f"{NAME}-{PATIENT_ID}.dcm").write_bytes(WORDS.encode())
    wait_for("refusal of a file", lambda: "not taken from" in _log(troubled))


def ask_for_what_is_not(troubled: Troubled) -> None:
    """Addresses and forms that name the patient."""
    with httpx.Client(base_url=troubled.page, trust_env=False, timeout=60) as anybody:
        for address in BAD_ADDRESSES:
            anybody.get(address.format(WORDS))
        anybody.post("/login", data={"username": NAME, "password": WORDS})
        anybody.post("/studies/1.2.3/sign", data={"revision": WORDS})


def break_the_database(troubled: Troubled) -> None:
    """A signed-in person asks for a page, and its table is gone."""
    password = "không ai biết"
    storage = open_storage(read_settings(troubled.settings_file), SystemClock())
    person = Account("bs.an", "Bs. An", Role.ADMIN)
    storage.store.put_account(StoredAccount(person, hash_password(password)))
    storage.engine.dispose()
    with Page(troubled, "bs.an", password) as page:
        with closing(sqlite3.connect(troubled.folder / "data" / "phoi.sqlite")) as database:
            database.execute("ALTER TABLE dispositions RENAME TO gone")
            database.execute("ALTER TABLE reviews RENAME TO gone_too")
        for address in ("/", "/studies/1.2.3", *(a.format(WORDS) for a in BAD_ADDRESSES)):
            page.ask(address)
        httpx.get(f"{troubled.page}metrics/", trust_env=False, timeout=60)


def phoi(site: Hospital, *arguments: object) -> None:
    """Run a command of Phoi, whatever comes of it."""
    subprocess.run(
        [PHOI, *map(str, arguments)],
        env={**os.environ, "PHOI_HOME": str(site.home)},
        capture_output=True,
        text=True,
        check=False,
    )


def _log(troubled: Troubled) -> str:
    return (troubled.folder / "edge.log").read_text()


# --- would it be seen? ---------------------------------------------------------------------------

LEAKING_SESSION = """
import runpy
globals().update(runpy.run_path({conftest!r}))
"""
LEAKING_TEST = """
import logging, os, sqlite3, subprocess, sys, time, zipfile
from contextlib import closing
import httpx, pytest
from starlette.responses import PlainTextResponse
from support.outside import wait_for
from support.planted import NAME, PATIENT_ID
from support.web_server import serving

def get(response, path):
    with serving(response) as port:
        httpx.get(f"http://127.0.0.1:{port}{path}", trust_env=False)

@pytest.mark.parametrize(
    ("code", "who"),
    [("import sys", NAME), ("print('Ánh Tuyết')", ""), ("import sys; sys.exit('Ánh Tuyết')", "")],
    ids=["arguments", "output", "errors"],
)
def test_command(code, who, tmp_path):
    (tmp_path / "phoi_it.py").write_text(code)
    script = ["python", "-X", "utf8", "phoi_it.py", who]
    subprocess.run(script, executable=sys.executable, cwd=tmp_path, capture_output=True)

@pytest.mark.parametrize(
    ("arguments", "environment"),
    [(["tail", "-f", "/dev/null", NAME], {}), (["sleep", "60"], {"WHO": NAME})],
    ids=["arguments", "environment"],
)
def test_process(arguments, environment, watch):
    def seen():
        return any(leak.where.startswith(f"{arguments[0]}: ") for leak in watch.leaks)
    environment = {**os.environ, **environment}
    with subprocess.Popen(arguments, env=environment, stderr=subprocess.DEVNULL) as process:
        wait_for("look", seen, patience_s=60)
        process.kill()

def test_page():
    get(PlainTextResponse(NAME, 500), "/")
    get(PlainTextResponse("", 404, {"Location": PATIENT_ID}), "/")

def test_metrics():
    get(PlainTextResponse(f'studies{{who="{PATIENT_ID}"}} 1'), "/metrics/")
    get(PlainTextResponse("", 200, {"X-Who": PATIENT_ID}), "/metrics/")

def test_mlflow(watch, tmp_path):
    with zipfile.ZipFile(tmp_path / "case.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("case.json", NAME)
    body = (tmp_path / "case.zip").read_bytes()
    (tmp_path / "case.zip").unlink()
    with serving(PlainTextResponse("ok")) as port:
        with watch.relay_to(f"http://127.0.0.1:{port}") as url:
            answer = httpx.put(f"{url}/artifacts/1", content=body, trust_env=False)
            httpx.put(f"{url}/artifacts/{PATIENT_ID}", trust_env=False)
            httpx.put(f"{url}/runs?who={PATIENT_ID}", trust_env=False)
            httpx.put(f"{url}/models", headers={"X-Who": PATIENT_ID}, trust_env=False)
    assert answer.text == "ok"

def test_files(tmp_path_factory):
    root = tmp_path_factory.mktemp("files", numbered=False)
    (root / "mlflow").mkdir()
    for log in ("edge.log", "edge.log.1", "worker.log.txt", "mlflow/meta.yaml"):
        (root / log).write_text(NAME)
    (root / f"{PATIENT_ID}.txt").write_text("a file")
    (root / "folder" / NAME).mkdir(parents=True)

def test_database(tmp_path_factory):
    root = tmp_path_factory.mktemp("node", numbered=False)
    with closing(sqlite3.connect(root / "phoi.sqlite")) as database:
        for table, column in LEAKING_COLUMNS:
            database.execute(f"CREATE TABLE {table} (id INTEGER, {column} TEXT)")
            database.execute(f"INSERT INTO {table} VALUES (1, ?)", [NAME])
        database.execute("CREATE TABLE orders (content TEXT)")  # of a patient by its purpose
        database.execute("INSERT INTO orders VALUES (?)", [NAME])
        database.commit()

@pytest.fixture
def leaking():
    print(f"before {NAME}")
    yield
    print(f"after {NAME}")

def test_captured(leaking):  # the last one: what it writes is known when all others have ended
    print(NAME)
    print(NAME, file=sys.stderr)
    logging.getLogger("phoi").error(NAME)
"""
LEAKING_COLUMNS = (
    ("deliveries", "last_error"),
    ("analyses", "error"),
    ("audit", "detail"),
    ("facts", "value"),
    ("recall_items", "trouble"),
    ("recalls", "reason"),
    ("reconciliations", "report"),
    ("problems", "text"),
    ("a_table_of_later", "anything"),
)
COMMAND = "python -X utf8 phoi_it.py"
LEAKS = {
    ("command", f"{COMMAND} …: arguments"),
    ("command", f"{COMMAND} : output"),
    ("command", f"{COMMAND} : errors"),
    ("process", "tail: arguments"),
    ("process", "sleep: environment"),
    ("page", "GET answered 500: body"),
    ("page", "GET answered 404: headers"),
    ("page", "GET metrics 200: body"),
    ("page", "GET metrics 200: headers"),
    ("mlflow", "PUT /artifacts/1: body"),
    ("mlflow", "PUT /artifacts/…: address"),
    ("mlflow", "PUT /runs: address"),
    ("mlflow", "PUT /models: headers"),
    ("log", "files/edge.log"),
    ("log", "files/edge.log.1"),
    ("log", "files/worker.log.txt"),
    ("log", "files/mlflow/meta.yaml"),
    ("path", "files/…"),
    ("path", "files/folder/…"),
    *(("operator", f"node/phoi.sqlite: {table}.{column}") for table, column in LEAKING_COLUMNS),
    ("captured", "test_leaks.py::test_captured: Captured stdout setup"),
    ("captured", "test_leaks.py::test_captured: Captured stdout call"),
    ("captured", "test_leaks.py::test_captured: Captured stderr call"),
    ("captured", "test_leaks.py::test_captured: Captured log call"),
    ("captured", "test_leaks.py::test_captured: Captured stdout teardown"),
}


def test_a_leak_by_each_part_of_each_channel_would_be_seen() -> None:
    done = leak(f"{LEAKING_TEST}\nLEAKING_COLUMNS = {LEAKING_COLUMNS!r}\n")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    assert "11 passed" in done.stdout, done.stdout
    assert "A PLANTED PATIENT IS WHERE NONE MAY BE" in done.stdout
    told = re.findall(r"^(\w+): (?:name|patient id) in (.+)$", done.stdout, re.MULTILINE)
    assert set(told) == LEAKS
    assert {channel for channel, _ in told} == set(CHANNELS)


def test_a_session_without_a_leak_passes_and_one_in_many_processes_is_refused() -> None:
    assert leak("def test_nothing(): print('nothing')").returncode == pytest.ExitCode.OK
    assert leak("def test_nothing(): pass", "-n", "1").returncode == pytest.ExitCode.USAGE_ERROR


def leak(tests: str, *options: str) -> subprocess.CompletedProcess[str]:
    """A session of these tests under the watch of the folder's own ``conftest.py``."""
    with tempfile.TemporaryDirectory() as elsewhere:
        folder = Path(elsewhere)
        conftest = Path(__file__).with_name("conftest.py")
        (folder / "conftest.py").write_text(LEAKING_SESSION.format(conftest=str(conftest)))
        (folder / "test_leaks.py").write_text(tests)
        return subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options),
                *(f"--rootdir={folder}", f"--basetemp={folder / 'tmp'}", "--import-mode=importlib"),
                str(folder),
            ],
            env=os.environ | {"PYTHONPATH": str(conftest.parents[1]), LEAKS_FOR: str(os.getpid())},
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
