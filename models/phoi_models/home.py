"""Where an installation keeps its own keys and models."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Home:
    """The data folder of one installation. Private keys live here, never in the source tree.

    Attributes:
        root: absolute path; need not exist yet.
    """

    root: Path

    @property
    def signing_key(self) -> Path:
        """The installation's private Ed25519 key, PEM, readable by its owner only."""
        return self.root / "keys" / "installation.pem"

    @property
    def trust(self) -> Path:
        """The public keys that this installation trusts, and what it has revoked."""
        return self.root / "trust.json"

    @property
    def models(self) -> Path:
        """Root of the bundle store."""
        return self.root / "models"

    @property
    def volumes(self) -> Path:
        """Folder in which an edge leaves voxels for a worker on the same host."""
        return self.root / "volumes"


def find_home(environment: Mapping[str, str] = os.environ) -> Home:
    """The data folder named by PHOI_HOME, else the XDG data folder (``~/.local/share/phoi``)."""
    if named := environment.get("PHOI_HOME"):
        return Home(Path(named).expanduser().absolute())
    data = environment.get("XDG_DATA_HOME") or "~/.local/share"
    return Home(Path(data).expanduser().absolute() / "phoi")
