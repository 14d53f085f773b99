"""``phoi deliveries``: what waits to be sent, what did not arrive and why, and sending it again."""

from __future__ import annotations

import getpass
from collections.abc import Iterator, Sequence
from typing import Annotated

import typer

from phoi_edge_node.bootstrap import opened_storage
from phoi_edge_node.cli.options import DEFAULT_SETTINGS, SettingsFile
from phoi_edge_node.errors import EdgeError, IllegalTransition, SettingsError
from phoi_edge_node.plain_words import explain
from phoi_edge_node.settings import read_settings
from phoi_edge_node.store import Delivery, StudyStore
from phoi_edge_node.study import DeliveryState
from phoi_edge_node.system import SystemClock

app = typer.Typer(
    help="What waits to be sent, what did not arrive and why; send it again.", no_args_is_help=True
)

_NOT_ARRIVED = (DeliveryState.PENDING, DeliveryState.SENDING, DeliveryState.DEAD)
Destination = Annotated[
    str, typer.Option("--destination", help="Only of this destination, by its name in settings.")
]


@app.command("list")
def list_(
    settings_file: SettingsFile = DEFAULT_SETTINGS,
    destination: Destination = "",
    *,
    dead: Annotated[bool, typer.Option("--dead", help="Only what was given up.")] = False,
) -> None:
    """List documents that have not arrived, oldest first; the node may run.

    Each line has the number, destination, kind, state, tries and when it changed last, UTC; under
    it the reason in words, in the site's language, and what to do.

    Exit status: 0 nothing was given up, 1 something was.
    """
    settings = read_settings(settings_file)
    with opened_storage(settings, SystemClock()) as storage:
        found = _of(storage.store, destination, (DeliveryState.DEAD,) if dead else _NOT_ARRIVED)
    for delivery in found:
        for line in _lines(delivery, settings.site.language):
            typer.echo(line)
    given_up = sum(delivery.state is DeliveryState.DEAD for delivery in found)
    typer.echo(f"{len(found)} not arrived, {given_up} of them given up")
    if given_up:
        raise typer.Exit(1)


@app.command()
def resend(
    number: Annotated[int | None, typer.Argument(help="As `list` shows it.")] = None,
    settings_file: SettingsFile = DEFAULT_SETTINGS,
    destination: Destination = "",
    *,
    everything: Annotated[
        bool, typer.Option("--all", help="All that was given up, of one --destination.")
    ] = False,
) -> None:
    """Send a document again that was given up, or has arrived; the node may run, and sends it.

    The same bytes go, with the same identity, so nothing comes twice. The audit says who asked.
    """
    if everything is (number is not None) or everything is not bool(destination):
        raise SettingsError("name one number, or --all with --destination")
    user = getpass.getuser()
    with opened_storage(read_settings(settings_file), SystemClock()) as storage:
        if number is None:
            resent = storage.store.resend_dead(destination, user)
        else:
            _resend(storage.store, number, user)
            resent = 1
    typer.echo(f"{resent} will be sent again")


def _of(
    store: StudyStore, destination: str, states: tuple[DeliveryState, ...]
) -> Sequence[Delivery]:
    found = store.deliveries(states=states)
    return [d for d in found if destination in {"", d.destination}]


def _lines(delivery: Delivery, language: str) -> Iterator[str]:
    yield (
        f"{delivery.id:>8}  {delivery.destination:<12} {delivery.kind.value:<6} "
        f"{delivery.state.value:<8} tries {delivery.attempts:<3} "
        f"{delivery.updated_at:%Y-%m-%d %H:%M:%S}  {delivery.study_instance_uid or '-'}"
    )
    if delivery.state is DeliveryState.DEAD:
        words = explain(delivery.last_error, delivery.kind)
        vi = language == "vi"
        yield f"          {words.vi if vi else words.en} ({delivery.last_error})"
        yield f"          {words.remedy_vi if vi else words.remedy_en}"
    elif delivery.last_error:
        yield f"          ({delivery.last_error})"


def _resend(store: StudyStore, number: int, user: str) -> None:
    """Queue one.

    Raises:
        EdgeError: there is no such delivery, or it cannot be sent again.
    """
    try:
        store.resend(number, user)
    except KeyError:
        raise EdgeError(f"there is no delivery {number}: see phoi deliveries list") from None
    except IllegalTransition as error:
        raise EdgeError(f"delivery {number} cannot be sent again: {error}") from None
