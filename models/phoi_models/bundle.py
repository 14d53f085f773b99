"""Model bundles: a folder in MONAI Bundle layout, covered by one signed manifest.

``configs/metadata.json`` (with the section ``phoi``: ``DetectorParameters`` for Phoi's own kind of
network, ``AnchorBoxParameters`` for one that was imported),
``models/model.onnx``, ``docs/README.md`` (the model card), ``LICENSE`` and ``manifest.json``. The
same networks in 8-bit integers may lie beside those in float32 (``models/model.int8.onnx``).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from phoi_models.errors import BadBundle, UntrustedBundle
from phoi_models.files import write_atomically
from phoi_models.geometry import Index
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
CPM_TOLERANCE = 0.01
"""So much of the mean sensitivity of the FROC (CPM) another form of a network may lose."""

Probability = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Length = Annotated[float, Field(gt=0)]
OutputShapes = Mapping[str, tuple[int, ...]]
"""Of the network's outputs for one patch: by name, in order; channels first."""


class Form(StrEnum):
    """In which numbers a network computes."""

    FLOAT32 = "fp32"
    INT8 = "int8"


OnnxForms = Mapping[Form, bytes]
"""One network: the bytes of its ONNX file in each form; always in float32."""


def form_file(name: str, form: Form) -> str:
    """The file of a network in one form: ``models/model.onnx``, ``models/model.int8.onnx``."""
    path = PurePosixPath(name)
    return name if form is Form.FLOAT32 else str(path.with_suffix(f".{form}{path.suffix}"))


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


class Int8Form(_Parameters):
    """Networks in 8-bit integers lie beside those in float32 and may run in their place.

    Both were measured on the same chests; a form that loses more than ``CPM_TOLERANCE`` is none.

    Attributes:
        cpm: mean sensitivity of the FROC of the 8-bit networks.
        fp32_cpm: that of the networks in float32.
        scans: on which both were measured.
        nodules: in these scans.
    """

    cpm: float = Field(ge=0, le=1)
    fp32_cpm: float = Field(ge=0, le=1)
    scans: Count
    nodules: Count

    @model_validator(mode="after")
    def _accepted(self) -> Self:
        if self.cpm < self.fp32_cpm - CPM_TOLERANCE:
            raise ValueError(
                f"the 8-bit networks find too little: CPM {self.cpm:.3f}, {self.fp32_cpm:.3f} in "
                f"float32, and {CPM_TOLERANCE} may be lost"
            )
        return self


class _ModelParameters(_Parameters):
    """What every kind of detector says of itself."""

    name: ModelName
    version: ModelVersion
    window_hu: tuple[float, float]
    patch_shape: tuple[Count, Count, Count]
    calibration: Calibration
    operating_points: dict[str, OperatingPoint]

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if self.window_hu[0] >= self.window_hu[1]:
            raise ValueError("window_hu must rise")
        if "default" not in self.operating_points:
            raise ValueError('operating_points needs "default"')
        return self


class DetectorParameters(_ModelParameters):
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
        patch_multiple: the network takes patches of any shape whose sides are multiples of this,
            so that they can be fitted to the lungs; None: of ``patch_shape`` only.
        stride: voxels of a patch to a cell of the outputs.
        margin: voxels at each side of a patch whose predictions another patch's replace.
        calibration: from score to probability.
        operating_points: thresholds by name; "default" is always one of them.
        second_look: how ``models/second_look.onnx`` is used; None if there is none.
        int8: that every network is there in 8-bit integers too; None if it is not.
    """

    kind: Literal["center-heatmap"]
    spacing_mm: float = Field(gt=0, le=10)
    stride: int = Field(ge=1)
    margin: int = Field(ge=0)
    patch_multiple: Count | None = None
    second_look: SecondLook | None = None
    int8: Int8Form | None = None

    @property
    def outputs(self) -> OutputShapes:
        """Of the network."""
        return heatmap_outputs(self.patch_shape, self.stride)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        second = self.second_look.patch_shape if self.second_look else ()
        if any(n % self.stride for n in (*self.patch_shape, *second)):
            raise ValueError("patch_shape must be a multiple of stride")
        margin = math.ceil(self.margin / self.stride) * self.stride  # whole cells are dropped
        if 2 * margin >= min(self.patch_shape):
            raise ValueError("margin leaves nothing of a patch")
        multiple = self.patch_multiple or self.stride
        if any(n % multiple for n in self.patch_shape) or multiple % self.stride:
            raise ValueError("patch_multiple must be a multiple of stride and divide patch_shape")
        return self


def heatmap_outputs(patch_shape: Index, stride: int) -> OutputShapes:
    """Of a centre-heatmap network, for a patch (z, y, x)."""
    cells = tuple(n // stride for n in patch_shape)
    return {"heatmap": (1, *cells), "diameter_mm": (1, *cells), "offset": (3, *cells)}


class AnchorLevel(_Parameters):
    """One level of a feature pyramid: its cells, and the boxes that are anchored in each.

    Attributes:
        stride: voxels of the input to a cell, along the input's axes.
        anchors: extents of a cell's anchor boxes along the input's axes, voxels.
    """

    stride: tuple[Count, Count, Count]
    anchors: tuple[tuple[Length, Length, Length], ...] = Field(min_length=1)


class AnchorBoxParameters(_ModelParameters):
    """How to feed a one-stage detector with anchor boxes (RetinaNet, Lin et al., ICCV 2017).

    The ONNX input ``image`` is float32 [N, 1, ...], its axes along the patient's as ``axes`` says.
    For each level i of the feature pyramid it has the outputs ``logits_i`` [N, A, cells] (of the
    score that a nodule lies in the box, A anchors) and ``boxes_i`` [N, 6 A, cells] (for each
    anchor: shift of the centre along the three axes in parts of the anchor's extents, then the
    logarithm of the box's extents in parts of the anchor's).

    Attributes:
        name: registered model name.
        version: human version.
        kind: which decoder reads the outputs.
        spacing_mm: of the canonical grid on which lungs are found, mm.
        axes: where in the patient each axis of the input grows to: Left or Right, Posterior or
            Anterior, Superior or Inferior.
        input_spacing_mm: voxel size of the input along its axes, mm.
        window_hu: HU mapped linearly to 0 and 1; beyond is clipped.
        patch_shape: shape of a patch along the input's axes, voxels.
        overlap: of neighbouring patches along each axis, as a part of the patch, at least; their
            outputs are averaged.
        levels: of the feature pyramid, finest first.
        score_threshold: boxes of at most this score are dropped.
        top_k_per_level: so many boxes of a level, those with the highest scores, are kept.
        nms_iou: non-maximum suppression drops what overlaps a better box by more than this
            intersection over union.
        most_boxes: so many at most are left.
        calibration: from score to probability.
        operating_points: thresholds by name; "default" is always one of them.
    """

    kind: Literal["anchor-box"]
    spacing_mm: float = Field(default=1.0, gt=0, le=10)
    axes: Annotated[str, StringConstraints(pattern="^[LRPASI]{3}$")]
    input_spacing_mm: tuple[Length, Length, Length]
    overlap: float = Field(ge=0, lt=1)
    levels: tuple[AnchorLevel, ...] = Field(min_length=1, max_length=8)
    score_threshold: float = Field(ge=0, lt=1)
    top_k_per_level: Count
    nms_iou: float = Field(ge=0, le=1)
    most_boxes: Count
    second_look: None = None
    int8: None = None

    @property
    def outputs(self) -> OutputShapes:
        """Of the network: the logits of all levels, then the boxes of all levels."""
        shapes: dict[str, tuple[int, ...]] = {}
        for name, channels in (("logits", 1), ("boxes", 6)):
            for number, level in enumerate(self.levels):
                cells = (n // s for n, s in zip(self.patch_shape, level.stride, strict=True))
                shapes[f"{name}_{number}"] = (channels * len(level.anchors), *cells)
        return shapes

    @property
    def lattice(self) -> Index:
        """Voxels along each axis that hold whole cells of every level."""
        along = zip(*(level.stride for level in self.levels), strict=True)
        x, y, z = (math.lcm(*strides) for strides in along)
        return (x, y, z)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not all(set(pair) & set(self.axes) for pair in ("LR", "PA", "SI")):
            raise ValueError("axes needs one letter each of L or R, P or A, S or I")
        if any(n % s for n, s in zip(self.patch_shape, self.lattice, strict=True)):
            raise ValueError(f"patch_shape must be a multiple of {self.lattice}")
        return self


AnyParameters = DetectorParameters | AnchorBoxParameters
_ANY_PARAMETERS: TypeAdapter[AnyParameters] = TypeAdapter(
    Annotated[AnyParameters, Field(discriminator="kind")]
)


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
    parameters: AnyParameters
    onnx: OnnxForms = field(repr=False)
    second_look: OnnxForms | None = field(default=None, repr=False)

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
        networks = _networks(contents, parameters)
        return cls(
            folder,
            manifest,
            signed.key_id,
            parameters,
            networks[MODEL],
            networks.get(SECOND_LOOK),
        )


def network_files(parameters: AnyParameters) -> tuple[str, ...]:
    """The networks of a bundle, each by the file of its float32 form."""
    return (MODEL,) if parameters.second_look is None else (MODEL, SECOND_LOOK)


def parse_parameters(metadata: bytes) -> AnyParameters:
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
    return validate_parameters(content["phoi"], f"{METADATA}: phoi")


def validate_parameters(content: object, where: str) -> AnyParameters:
    """The parameters of either kind.

    Args:
        content: as JSON holds them.
        where: begins the message.

    Raises:
        BadBundle: they are malformed.
    """
    try:
        return _ANY_PARAMETERS.validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        at = [str(part) for part in first["loc"][1:]]  # the first is the kind
        raise BadBundle(f"{'.'.join([where, *at])}: {first['msg']}") from None


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


_NETWORKS = tuple(form_file(name, form) for name in (MODEL, SECOND_LOOK) for form in Form)


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
        if name in (METADATA, *_NETWORKS):
            contents[name] = content
    return contents


def _networks(contents: Mapping[str, bytes], parameters: AnyParameters) -> dict[str, OnnxForms]:
    """Every network in every form, by the file of its float32 form.

    Raises:
        BadBundle: the files are not those that the metadata speak of.
    """
    names = network_files(parameters)
    forms = (Form.FLOAT32,) if parameters.int8 is None else tuple(Form)
    wanted = {form_file(name, form) for name in names for form in forms}
    if odd := sorted(wanted ^ (contents.keys() - {METADATA})):
        raise BadBundle(f"{METADATA} and the folder disagree on {odd[0]}")
    return {name: {form: contents[form_file(name, form)] for form in forms} for name in names}


def _read_exactly(path: Path, size: int) -> bytes | None:
    """The content of ``path`` if it has this size; never follows a link."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        if os.fstat(file.fileno()).st_size != size:
            return None
        return file.read(size + 1)
