"""``phoi models``: the bundles of this installation, and whom it trusts."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from phoi_models import shipped
from phoi_models.bundle import METADATA, Bundle, parse_parameters, sign_bundle
from phoi_models.bundle_store import BundleStore
from phoi_models.errors import BadBundle, PhoiError, UntrustedBundle
from phoi_models.home import find_home
from phoi_models.signing import (
    TrustStore,
    key_id,
    load_signing_key,
    parse_public_pem,
    public_pem,
)

app = typer.Typer(
    help="List, sign, verify and install model bundles. Nothing runs that is not signed.",
    no_args_is_help=True,
)

BundleFolder = Annotated[
    Path, typer.Argument(exists=True, file_okay=False, help="Folder of a model bundle.")
]


@app.command()
def init() -> None:
    """Make this installation's key, and sign and install the models that come with Phoi.

    Run it once after installing Phoi, and again after each update; it changes only what is missing.
    """
    home = find_home()
    for bundle in shipped.initialise(home, datetime.now(UTC)):
        typer.echo(f"ready: {_title(bundle)}")
    typer.echo(f"keys and models are in {home.root}")


@app.command("list")
def list_models() -> None:
    """List the installed models, and whether each may run here."""
    home = find_home()
    store, trust = BundleStore(home.models), TrustStore.load(home.trust)
    table = Table("model", "version", "sequence", "bundle", "state")
    for model in store.models():
        try:
            store.load(model.identity, trust)
            state = "ready"
        except (BadBundle, UntrustedBundle) as error:
            state = str(error)
        identity = model.identity
        row = (identity.name, identity.version, str(model.sequence), identity.bundle_hash[:12])
        table.add_row(*row, state)
    if table.row_count:
        Console().print(table)
    else:
        typer.echo("no models are installed: run `phoi models init`")


@app.command()
def sign(
    folder: BundleFolder,
    sequence: Annotated[
        int | None,
        typer.Option(min=1, help="Default: one more than any installed bundle of this name."),
    ] = None,
) -> None:
    """Sign a bundle with this installation's key: writes its manifest.json."""
    home = find_home()
    key = load_signing_key(home.signing_key)
    if sequence is None:
        name = _name_of(folder)
        sequence = shipped.next_sequence(BundleStore(home.models), name)
    manifest = sign_bundle(folder, key, sequence=sequence, created=datetime.now(UTC))
    typer.echo(
        f"signed: {manifest.name} {manifest.version}, sequence {manifest.sequence}, "
        f"bundle {manifest.bundle_hash[:12]}"
    )


@app.command()
def verify(folder: BundleFolder) -> None:
    """Check a bundle's signature and every file of it. Exit status 1 if it must not run."""
    bundle = Bundle.load(folder, TrustStore.load(find_home().trust))
    typer.echo(f"trusted: {_title(bundle)}, key {bundle.key_id[:12]}")


@app.command()
def install(
    folder: BundleFolder,
    *,
    allow_older: Annotated[
        bool, typer.Option("--allow-older", help="Go back to an older bundle on purpose.")
    ] = False,
) -> None:
    """Verify a signed bundle and copy it into the store."""
    home = find_home()
    store, trust = BundleStore(home.models), TrustStore.load(home.trust)
    bundle = store.install(folder, trust, allow_older=allow_older)
    typer.echo(f"installed: {_title(bundle)}")


@app.command()
def trust(
    public_key: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help="Ed25519 public key, PEM.")
    ],
) -> None:
    """Trust another installation's key: its bundles may run here."""
    home = find_home()
    key = parse_public_pem(public_key.read_bytes())
    TrustStore.load(home.trust).trusting(key).save(home.trust)
    typer.echo(f"trusted: key {key_id(key)}")


@app.command()
def revoke(
    identifier: Annotated[str, typer.Argument(help="Key id or bundle hash, 64 hex digits.")],
) -> None:
    """Revoke a key or a bundle: what it covers never runs here again, whoever signs it."""
    if not re.fullmatch("[0-9a-f]{64}", identifier):
        raise PhoiError("give the whole key id or bundle hash: 64 hex digits")
    home = find_home()
    TrustStore.load(home.trust).revoking(identifier).save(home.trust)
    typer.echo(f"revoked: {identifier}")


@app.command("public-key")
def print_public_key() -> None:
    """Print this installation's public key, for others to trust."""
    key = load_signing_key(find_home().signing_key)
    typer.echo(public_pem(key.public_key()).decode(), nl=False)


def _title(bundle: Bundle) -> str:
    return f"{bundle.manifest.name} {bundle.manifest.version} ({bundle.bundle_hash[:12]})"


def _name_of(folder: Path) -> str:
    try:
        metadata = (folder / METADATA).read_bytes()
    except OSError:
        raise BadBundle(f"{folder} has no {METADATA}") from None
    return parse_parameters(metadata).name
