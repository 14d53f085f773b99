"""No planted patient in any log, metric, trace, error page or request to MLflow.

The watch of ``conftest.py`` looks over all acceptance tests. Here everything goes wrong on purpose,
each time with a planted value in what goes wrong; and the watch is shown to find what leaks.
"""

from __future__ import annotations

import json
import os
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
        )
        assert answer.is_error


def leave_on_a_cd(troubled: Troubled) -> None:
    """A file that is no image, named after the patient."""
    (troubled.cds / f"{NAME}-{PATIENT_ID}.dcm").write_bytes(WORDS.encode())
    wait_for("refusal of a file", lambda: "not taken from" in _log(troubled))


def ask_for_what_is_not(troubled: Troubled) -> None:
    """Addresses and forms that name the patient."""
    with httpx.Client(base_url=troubled.page, trust_env=False) as anybody:
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
        httpx.get(f"{troubled.page}metrics/", trust_env=False)


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
import os, sqlite3, subprocess, sys, time, zipfile
from contextlib import closing
import httpx
from starlette.responses import PlainTextResponse
from support.outside import wait_for
from support.planted import NAME, PATIENT_ID
from support.web_server import serving

def test_captured(): print(NAME)

def test_command():
    script = ["-c", "import sys; print(sys.argv[2])", "phoi_something", NAME]
    subprocess.run([sys.executable, *script], capture_output=True, check=True)

def test_process(watch):
    with subprocess.Popen(["sleep", "60"], env={**os.environ, "WHO": NAME}) as process:
        wait_for("look", lambda: "process" in {leak.channel for leak in watch.leaks})
        process.kill()

def test_page():
    with serving(PlainTextResponse(NAME, 500)) as port:
        httpx.get(f"http://127.0.0.1:{port}/", trust_env=False)

def test_metrics():
    with serving(PlainTextResponse(f'studies{{who="{PATIENT_ID}"}} 1')) as port:
        httpx.get(f"http://127.0.0.1:{port}/metrics/", trust_env=False)

def test_mlflow(watch, tmp_path):
    with zipfile.ZipFile(tmp_path / "case.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("case.json", NAME)
    body = (tmp_path / "case.zip").read_bytes()
    (tmp_path / "case.zip").unlink()
    with serving(PlainTextResponse("ok")) as port:
        with watch.relay_to(f"http://127.0.0.1:{port}") as url:
            answer = httpx.put(f"{url}/artifacts/1", content=body, trust_env=False)
    assert answer.text == "ok"

def test_files(tmp_path):
    (tmp_path / "edge.log").write_text(NAME)
    (tmp_path / NAME).mkdir()
    with closing(sqlite3.connect(tmp_path / "phoi.sqlite")) as database:
        database.execute("CREATE TABLE deliveries (last_error)")
        database.execute("INSERT INTO deliveries VALUES (?)", [NAME])
        database.commit()
"""


def test_a_leak_in_each_channel_would_be_seen() -> None:
    with tempfile.TemporaryDirectory() as elsewhere:
        folder = Path(elsewhere)
        conftest = Path(__file__).with_name("conftest.py")
        (folder / "conftest.py").write_text(LEAKING_SESSION.format(conftest=str(conftest)))
        (folder / "test_leaks.py").write_text(LEAKING_TEST)
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
                *(f"--rootdir={folder}", f"--basetemp={folder / 'tmp'}", "--import-mode=importlib"),
                str(folder),
            ],
            env=os.environ | {"PYTHONPATH": str(conftest.parents[1]), LEAKS_FOR: str(os.getpid())},
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    assert "7 passed, 1 error" in done.stdout, done.stdout
    unseen = [channel for channel in CHANNELS if f"\n{channel}: name in " not in done.stdout]
    assert unseen == [], done.stdout
