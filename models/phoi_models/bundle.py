"""Model bundles: a folder in MONAI Bundle layout, covered by one signed manifest.

``configs/metadata.json`` (with the section ``phoi`` that ``DetectorParameters`` describes),
``models/model.onnx``, ``docs/README.md`` (the model card), ``LICENSE`` and ``manifest.json``.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from phoi_models.errors import BadBundle, UntrustedBundle
from phoi_models.files import write_atomically
from phoi_models.identity import ModelIdentity
from phoi_models.signing import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    FileEntry,
    Manifest,
    ModelName,
    ModelVersion,
    SignedManifest,
    TrustStore,
    sign_manifest,
)

METADATA = "configs/metadata.json"
MODEL = "models/model.onnx"
SECOND_LOOK = "models/second_look.onnx"
REQUIRED_FILES = (METADATA, MODEL, "docs/README.md", "LICENSE")
MAX_BUNDLE_BYTES = 1 << 30

Probability = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]


class _Parameters(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Calibration(_Parameters):
    """Platt scaling: probability = sigmoid(slope * logit(score) + intercept)."""

    slope: float = Field(gt=0)
    intercept: float


class OperatingPoint(_Parameters):
    """A named threshold: marks of at least this calibrated probability are shown."""

    probability: Probability


class SecondLook(_Parameters):
    """A second network, with the first one's outputs, looks again at what the first has marked.

    The scores are joined as the weighted mean of their logits.

    Attributes:
        patch_shape: shape of its patches along (z, y, x), voxels; each has a mark in its middle.
        least_score: of the first network, for a mark to be looked at again.
        most: so many marks at most, those with the highest scores.
        weight: of the second network's logit; the first one's is the rest of 1.
    """

    patch_shape: tuple[Count, Count, Count]
    least_score: Probability
    most: Count
    weight: Probability


class DetectorParameters(_Parameters):
    """How to feed a network and read its outputs: section ``phoi`` of the bundle's metadata.

    The ONNX input ``image`` is float32 [N, 1, D, H, W] on a canonical LPS grid, axes (z, y, x).
    Its outputs have one cell for ``stride`` voxels along each axis: ``heatmap`` [N, 1, ...] (score
    in (0, 1) that a nodule's centre lies in the cell), ``diameter_mm`` [N, 1, ...] and ``offset``
    [N, 3, ...] (centre of the nodule from the centre of the cell, input voxels, (z, y, x)).

    Attributes:
        name: registered model name.
        version: human version.
        kind: which decoder reads the outputs.
        spacing_mm: of the isotropic canonical grid, mm.
        window_hu: HU mapped linearly to 0 and 1; beyond is clipped.
        patch_shape: shape of a patch along (z, y, x), voxels.
        stride: voxels of a patch to a cell of the outputs.
        margin: voxels at each side of a patch whose predictions another patch's replace.
        calibration: from score to probability.
        operating_points: thresholds by name; "default" is always one of them.
        second_look: how ``models/second_look.onnx`` is used; None if there is none.
    """

    name: ModelName
    version: ModelVersion
    kind: Literal["center-heatmap"]
    spacing_mm: float = Field(gt=0, le=10)
    window_hu: tuple[float, float]
    patch_shape: tuple[Count, Count, Count]
    stride: int = Field(ge=1)
    margin: int = Field(ge=0)
    calibration: Calibration
    operating_points: dict[str, OperatingPoint]
    second_look: SecondLook | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.window_hu[0] >= self.window_hu[1]:
            raise ValueError("window_hu must rise")
        second = self.second_look.patch_shape if self.second_look else ()
        if any(n % self.stride for n in (*self.patch_shape, *second)):
            raise ValueError("patch_shape must be a multiple of stride")
        margin = math.ceil(self.margin / self.stride) * self.stride  # whole cells are dropped
        if 2 * margin >= min(self.patch_shape):
            raise ValueError("margin leaves nothing of a patch")
        if "default" not in self.operating_points:
            raise ValueError('operating_points needs "default"')
        return self


@dataclass(frozen=True, eq=False)
class Bundle:
    """A bundle whose signature and every byte have been verified.

    Attributes:
        folder: where it lies.
        manifest: its verified manifest.
        key_id: of the key that signed it.
        parameters: pre- and post-processing.
        onnx: the very bytes of the network that were verified; what lies on disk may change later.
        second_look: those of the network for the second look; None if there is none.
    """

    folder: Path
    manifest: Manifest
    key_id: str
    parameters: DetectorParameters
    onnx: bytes = field(repr=False)
    second_look: bytes | None = field(default=None, repr=False)

    @property
    def bundle_hash(self) -> str:
        """SHA-256 (hex) of name, version and files."""
        return self.manifest.bundle_hash

    def identity(self, operating_point: str = "default") -> ModelIdentity:
        """This bundle, used at ``operating_point``."""
        return ModelIdentity(
            self.manifest.name, self.manifest.version, self.bundle_hash, operating_point
        )

    @classmethod
    def load(cls, folder: Path, trust: TrustStore) -> Bundle:
        """Read and verify a bundle.

        Raises:
            UntrustedBundle: its signature or content is not to be trusted.
            BadBundle: it is incomplete or malformed.
        """
        signed = read_manifest(folder)
        manifest = trust.verify(signed)
        contents = _verified_contents(folder, manifest)
        parameters = parse_parameters(contents[METADATA])
        if (parameters.name, parameters.version) != (manifest.name, manifest.version):
            raise BadBundle(f"{METADATA} and {MANIFEST_NAME} name different models")
        second_look = contents.get(SECOND_LOOK)
        if (parameters.second_look is None) != (second_look is None):
            raise BadBundle(f"{METADATA} and the folder disagree on {SECOND_LOOK}")
        onnx = contents[MODEL]
        return cls(folder, manifest, signed.key_id, parameters, onnx, second_look)


def parse_parameters(metadata: bytes) -> DetectorParameters:
    """The section ``phoi`` of ``configs/metadata.json``.

    Raises:
        BadBundle: it is missing or malformed.
    """
    try:
        content = json.loads(metadata)
    except ValueError:
        raise BadBundle(f"{METADATA} is not JSON") from None
    if not isinstance(content, dict) or "phoi" not in content:
        raise BadBundle(f'{METADATA} has no section "phoi"')
    try:
        return DetectorParameters.model_validate(content["phoi"])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in ("phoi", *first["loc"]))
        raise BadBundle(f"{METADATA}: {where}: {first['msg']}") from None


def read_manifest(folder: Path) -> SignedManifest:
    """The manifest of a bundle, not yet to be trusted.

    Raises:
        BadBundle: there is none, or it is malformed.
        UntrustedBundle: it is a link.
    """
    path = folder / MANIFEST_NAME
    if path.is_symlink():
        raise UntrustedBundle(f"{MANIFEST_NAME} is a link")
    if not path.is_file():
        raise BadBundle(f"no bundle is signed here: {folder} has no {MANIFEST_NAME}")
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise BadBundle(f"{MANIFEST_NAME} is too large")
    return SignedManifest.parse(path.read_bytes())


def bundle_files(folder: Path) -> dict[str, Path]:
    """Every file of a bundle but the manifest, by its name inside the bundle.

    Raises:
        UntrustedBundle: something in it is neither a file nor a folder: a link could lead outside.
    """
    found: dict[str, Path] = {}
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise UntrustedBundle(f"{path.relative_to(folder)} is neither a file nor a folder")
        for name in files:
            path = Path(parent, name)
            found[path.relative_to(folder).as_posix()] = path
    found.pop(MANIFEST_NAME, None)
    return found


def sign_bundle(
    folder: Path, key: Ed25519PrivateKey, *, sequence: int = 1, created: datetime | None = None
) -> Manifest:
    """Write the signed manifest of the bundle in ``folder``, replacing any other.

    Args:
        folder: bundle; name and version come from its metadata.
        key: private key.
        sequence: greater than that of every earlier bundle of this name.
        created: with a time zone; None means now.

    Raises:
        BadBundle: a required file is missing, or the metadata are malformed.
        UntrustedBundle: the folder holds links.
    """
    files = bundle_files(folder)
    if missing := [name for name in REQUIRED_FILES if name not in files]:
        raise BadBundle(f"the bundle lacks {', '.join(missing)}")
    parameters = parse_parameters(files[METADATA].read_bytes())
    try:
        manifest = Manifest(
            name=parameters.name,
            version=parameters.version,
            sequence=sequence,
            created=f"{(created or datetime.now(UTC)).astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}",
            files={name: _entry(path.read_bytes()) for name, path in sorted(files.items())},
        )
    except ValidationError as error:
        raise BadBundle(f"the bundle cannot be signed: {error.errors()[0]['msg']}") from None
    write_atomically(folder / MANIFEST_NAME, sign_manifest(manifest, key).serialize())
    return manifest


def _entry(content: bytes) -> FileEntry:
    return FileEntry(sha256=hashlib.sha256(content).hexdigest(), size=len(content))


def _verified_contents(folder: Path, manifest: Manifest) -> Mapping[str, bytes]:
    """Metadata and networks, after every file proved to be the one that was signed."""
    if sum(entry.size for entry in manifest.files.values()) > MAX_BUNDLE_BYTES:
        raise BadBundle("the bundle is too large")
    if missing := [name for name in REQUIRED_FILES if name not in manifest.files]:
        raise BadBundle(f"the bundle lacks {', '.join(missing)}")
    files = bundle_files(folder)
    if files.keys() != manifest.files.keys():
        odd = sorted(files.keys() ^ manifest.files.keys())
        raise UntrustedBundle(f"{odd[0]} is in the folder or in the manifest, not in both")
    contents = {}
    for name, entry in manifest.files.items():
        content = _read_exactly(files[name], entry.size)
        if content is None or _entry(content) != entry:
            raise UntrustedBundle(f"{name} is not the file that was signed")
        if name in (METADATA, MODEL, SECOND_LOOK):
            contents[name] = content
    return contents


def _read_exactly(path: Path, size: int) -> bytes | None:
    """The content of ``path`` if it has this size; never follows a link."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        if os.fstat(file.fileno()).st_size != size:
            return None
        return file.read(size + 1)
