"""What the checks ask of the outside: filled by ``doctor.py`` with adapters, by tests at will."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from phoi_models.home import Home
from phoi_models.identity import ModelIdentity

from phoi_edge_node.ports import Destination, ImageSource
from phoi_edge_node.settings import ArchiveSettings, EdgeSettings
from phoi_edge_node.store import InState, Pause


class Echo(StrEnum):
    """How another application entity answered a C-ECHO."""

    ANSWERED = "answered"
    UNKNOWN_CALLED = "unknown called AE title"
    UNKNOWN_CALLING = "unknown calling AE title"
    REJECTED = "rejected"
    NOT_DICOM = "not DICOM"


class SchemaAge(StrEnum):
    """The database's schema, beside that of this program."""

    ABSENT = "absent"  # it is made at the first start
    EARLIER = "earlier"
    CURRENT = "current"
    LATER = "later"


@dataclass(frozen=True)
class Records:
    """What the database remembers that an operator should know. All times are UTC.

    Attributes:
        schema: its name; "" where there is none.
        dead: deliveries that were given up, by destination.
        unsigned: results that wait for a signature; None where none does.
    """

    age: SchemaAge
    schema: str = ""
    pauses: Sequence[Pause] = ()
    dead: Mapping[str, int] = field(default_factory=dict)
    unsigned: InState | None = None


@dataclass(frozen=True)
class Probes:
    """Questions to the outside. Any may take as long as its time-out; none changes anything.

    Attributes:
        now: UTC.
        node_runs: does an edge node hold the data folder? Raises EdgeError.
        echo: C-ECHO to an archive, as our AE title. Raises SettingsError.
        own_echo: C-ECHO to our own receiver, as this calling AE title.
        takes_commitment: does an archive offer Storage Commitment (PS3.4 J) to us?
        lane: the destination of a name, whatever the site's mode. Raises SettingsError.
        sources: archives that are asked what they hold. Raises SettingsError.
        models: of all workers that answer. Raises PhoiError.
        records: see there. Raises EdgeError.
        last_backup: when the latest was made; None: never.
    """

    now: Callable[[], datetime]
    node_runs: Callable[[], bool]
    echo: Callable[[ArchiveSettings], Echo]
    own_echo: Callable[[str], bool]
    takes_commitment: Callable[[ArchiveSettings], bool]
    lane: Callable[[str], Destination | None]
    sources: Callable[[], Sequence[ImageSource]]
    models: Callable[[], Sequence[ModelIdentity]]
    records: Callable[[], Records]
    last_backup: Callable[[], datetime | None]


@dataclass(frozen=True)
class Installation:
    """The installation that is examined."""

    settings: EdgeSettings
    settings_file: str
    home: Home
    probes: Probes
