"""``phoi edge``: the hospital's node, and the few things an operator does to it."""

from __future__ import annotations

import platform
import re
import secrets
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import structlog
import typer
from phoi_models.home import find_home
from phoi_models.logs import LogFile, configure_logs
from phoi_models.service_manager import serve_until, stop_signal

from phoi_edge_node.accounts import Account, Role, hash_password
from phoi_edge_node.bootstrap import EdgeNode, opened_storage
from phoi_edge_node.cli.backup import backup, restore
from phoi_edge_node.cli.export import export_feedback
from phoi_edge_node.cli.options import DEFAULT_SETTINGS, SettingsFile
from phoi_edge_node.errors import SettingsError
from phoi_edge_node.settings import LogSettings, digest, read_settings
from phoi_edge_node.sql.engine import named_database_errors
from phoi_edge_node.store import StoredAccount
from phoi_edge_node.system import SystemClock

log = structlog.get_logger(__name__)

app = typer.Typer(
    help="Receive, analyse, deliver, review: the hospital's node.", no_args_is_help=True
)

_TEMPLATE = """\
# One Phoi edge node. Every value can also come from the environment, for example
# PHOI_EDGE__SITE__MODE=pacs. The reference is docs/reference/settings.md.
data = "{data}"

[site]
name = "{site}"            # small letters, digits and -; appears in MLflow, never a patient's
mode = "shadow"            # shadow: results stay inside Phoi. Then: pacs, pacs+emr
language = "vi"            # vi or en; each user may switch

[dicom]                    # what the PACS sends to
ae_title = "PHOI"
host = "127.0.0.1"         # 0.0.0.0 to be reached from the PACS
port = 11112
allowed_calling_ae_titles = []   # empty: anyone. Name your PACS here
quiet_time_s = 30          # a study is complete so long after its last image

[inference]
workers = ["127.0.0.1:50051"]    # addresses of `phoi worker`

[web]                      # the review page
host = "127.0.0.1"         # another address needs tls_certificate and tls_key
port = 8080

# [[archives]]             # where SR, SEG and summary go by C-STORE
# ae_title = "PACS"
# host = "192.0.2.10"
# port = 104
# query = true             # ask it whether all images of a study came
# retrieve = "c-get"       # and for those that did not

# [orders]                 # listens for ORM, OMI and ADT over MLLP
# host = "0.0.0.0"
# allowed_peers = ["192.0.2.20"]

# [worklist]               # asked for the order behind a study
# ae_title = "RIS"
# host = "192.0.2.21"
# port = 104

# [watched_folder]         # where people copy CDs to
# folder = "/srv/phoi/cds"

# [stow]                   # STOW-RS at /dicom-web of the page
# bearer_token_file = "/etc/phoi/stow.token"

# [hl7]                    # ORU^R01 over MLLP
# host = "192.0.2.20"
# port = 2575

# [fhir]
# base_url = "https://emr.example/fhir"

# [mlflow]
# tracking_uri = "https://mlflow.example"
"""


app.command("backup")(backup)
app.command("restore")(restore)
app.command("export-feedback")(export_feedback)


@app.command()
def run(settings_file: SettingsFile = DEFAULT_SETTINGS) -> None:
    """Run the node until Ctrl-C or SIGTERM; it stops within about ten seconds.

    Nothing is lost by stopping or killing it: what was received, waits or is under way is taken up
    at the next start. Logs are JSON lines on stderr, or where `logs` says, without patient data.
    """
    settings = read_settings(settings_file)
    configure_logs(settings.logs.level, _log_file(settings.logs))
    log.info(
        "edge node starts",
        phoi=version("phoi"),
        python=platform.python_version(),
        settings=digest(settings),
    )
    stop = stop_signal()
    with named_database_errors():
        node = EdgeNode(settings, find_home())
        node.start()
    serve_until(stop, lambda: not node.watchdog.troubles())
    node.stop()


def _log_file(settings: LogSettings) -> LogFile | None:
    if settings.file is None:
        return None
    return LogFile(settings.file, settings.maximum_mb, settings.keep)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Folder for the settings and the data.")],
    site: Annotated[str, typer.Option(help="Name of this site: small letters, digits, -.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder of the data, if not beside the settings.")
    ] = None,
) -> None:
    """Write a settings file that starts, with comments on what to change."""
    path = folder / "edge.toml"
    if path.exists():
        raise SettingsError(f"{path} exists already: change it, or name another folder")
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", site):
        raise SettingsError("a site's name has small letters, digits and - only")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(
        _TEMPLATE.format(data=(data or folder / "data").absolute(), site=site), encoding="utf-8"
    )
    read_settings(path)
    typer.echo(f"Wrote {path}.")
    typer.echo(f"Next: phoi edge account add YOUR.NAME -s {path}; phoi doctor -s {path}")


accounts = typer.Typer(help="Named people who may use the page.", no_args_is_help=True)
app.add_typer(accounts, name="account")


@accounts.command("add")
def add_account(
    username: Annotated[str, typer.Argument(help="What the person signs in with: a-z 0-9 . _ -")],
    display_name: Annotated[str, typer.Option("--name", help="Shown on reports.")],
    role: Annotated[Role, typer.Option(help="An admin also sees operations and the audit.")] = (
        Role.REVIEWER
    ),
    settings_file: SettingsFile = DEFAULT_SETTINGS,
) -> None:
    """Add a person, or set a new password. Prints the password once; nothing stores it in clear."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", username):
        raise SettingsError("a username has a-z, 0-9, '.', '_' and '-' only")
    password = secrets.token_urlsafe(12)
    account = StoredAccount(Account(username, display_name, role), hash_password(password))
    with opened_storage(read_settings(settings_file), SystemClock()) as storage:
        storage.store.put_account(account)
    typer.echo(f"{username} may sign in with the password: {password}")
