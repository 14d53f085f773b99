"""``phoi models import``."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from phoi_models.bundle import (
    METADATA,
    MODEL,
    AnyParameters,
    OperatingPoint,
    sign_bundle,
    validate_parameters,
)
from phoi_models.bundle_store import BundleStore
from phoi_models.errors import PhoiError
from phoi_models.geometry import Index
from phoi_models.home import find_home
from phoi_models.shipped import next_sequence
from phoi_models.signing import load_signing_key
from phoi_models.volume import Volume
from pydantic import ValidationError

from phoi_training.import_model.card import Origin, imported_card
from phoi_training.import_model.errors import CannotImport, OutputsDiffer

OUTPUTS_DIFFER_STATUS = 3
_LICENCES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "docs/license.txt", "docs/LICENSE")
_LARGE_PATCH = 16_000_000
_ORIGINAL_CARD = "docs/ORIGINAL.md"


@dataclass(frozen=True)
class Wishes:
    """What the importing person decides.

    Attributes:
        operating_points: thresholds by name.
        name: of the new bundle; None takes the source's.
        licence: file; None takes the source's.
        patch: along the input's axes, voxels; None takes the source's.
    """

    operating_points: Mapping[str, OperatingPoint]
    name: str | None = None
    licence: Path | None = None
    patch: Index | None = None


@dataclass(frozen=True)
class Imported:
    """A model that stood its checks; its network lies in a file.

    Attributes:
        parameters: section ``phoi`` of the bundle.
        origin: for the model card.
        licence: file to copy.
        original_card: file to copy; None if there is none.
    """

    parameters: AnyParameters
    origin: Origin
    licence: Path
    original_card: Path | None = None


def import_command(
    source: Annotated[
        Path,
        typer.Argument(exists=True, help="Folder of a MONAI bundle, or the manifest of an ONNX."),
    ],
    bundle: Annotated[Path, typer.Argument(help="New folder to write the signed bundle to.")],
    *,
    threshold: Annotated[
        list[str],
        typer.Option(
            help="Score from which a mark is shown: 0.5, or for another operating point NAME=0.2;"
            " may be repeated."
        ),
    ],
    name: Annotated[
        str | None, typer.Option(help="Of the bundle; default: as the source calls itself.")
    ] = None,
    licence: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Default: the LICENSE of the source."),
    ] = None,
    patch: Annotated[
        str | None,
        typer.Option(
            help="Voxels along the network's axes, as 192,192,80; smaller ones need less memory."
            " Default: as the MONAI bundle says."
        ),
    ] = None,
    check_on: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            help="CT to compare on: a NIfTI, NRRD or MetaImage file, or a folder with the DICOM"
            " files of one series. Default: a procedural phantom.",
        ),
    ] = None,
) -> None:
    """Make a signed bundle of a detector that was trained elsewhere.

    From a MONAI bundle with a 3D RetinaNet, such as lung_nodule_ct_detection of MONAI's model zoo,
    the network is exported to ONNX; what surrounds it (axes, voxel size, window, patches, anchors,
    suppression) becomes parameters of the bundle. MONAI's own inference and Phoi's are compared on
    a CT, and the model is refused unless both find the same boxes with the same scores. The
    configuration is read as data: nothing of the bundle is executed.

    A plain ONNX file comes with a manifest; the how-to page import-a-model shows one.

    Nothing is validated by this: measure the model with `phoi evaluate` before you trust it.

    Exit status: 0 imported, 1 it cannot be imported, 3 it would not compute what the original does.

    Example: phoi models import lung_nodule_ct_detection out/monai-nodule --threshold 0.5
    --patch 192,192,80
    """
    home = find_home()
    key = load_signing_key(home.signing_key)
    wishes = Wishes(_operating_points(threshold), name, licence, _patch(patch))
    if bundle.exists():
        raise CannotImport(f"{bundle} exists already: name a new folder")
    bundle.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=bundle.parent) as scratch:
        new = Path(scratch) / "bundle"
        try:
            imported = (
                _from_monai(source, wishes, new / MODEL, check_on)
                if source.is_dir()
                else _from_onnx(source, wishes, new / MODEL)
            )
        except OutputsDiffer as error:
            typer.echo(f"phoi: {error}", err=True)
            raise typer.Exit(OUTPUTS_DIFFER_STATUS) from None
        _write(new, imported)
        sequence = next_sequence(BundleStore(home.models), imported.parameters.name)
        manifest = sign_bundle(new, key, sequence=sequence, created=datetime.now(UTC))
        new.rename(bundle)
    for check in imported.origin.checks:
        typer.echo(check)
    typer.echo(f"signed: {manifest.name} {manifest.version}, bundle {manifest.bundle_hash[:12]}")
    typer.echo(f"nothing was validated; next: phoi evaluate {bundle} DATA")


def _operating_points(thresholds: Sequence[str]) -> dict[str, OperatingPoint]:
    points = {}
    for text in thresholds:
        name, _, number = text.rpartition("=")
        try:
            points[name or "default"] = OperatingPoint(probability=float(number))
        except (ValueError, ValidationError):
            raise CannotImport(
                f"--threshold {text}: give a number between 0 and 1, or NAME=NUMBER"
            ) from None
    if "default" not in points:
        raise CannotImport("give a threshold without a name as well: it is the default")
    return points


def _patch(text: str | None) -> Index | None:
    if text is None:
        return None
    numbers = re.fullmatch(r"(\d+),(\d+),(\d+)", text)
    if numbers is None:
        raise CannotImport(f"--patch {text}: give three numbers, as 192,192,80")
    return (int(numbers[1]), int(numbers[2]), int(numbers[3]))


def _from_monai(source: Path, wishes: Wishes, onnx_file: Path, check_on: Path | None) -> Imported:
    metadata = _metadata(source)
    licence = wishes.licence or _licence_in(source)
    # These need torch, MONAI and torchvision, and seconds to load.
    from phoi_training.import_model import agreement, retinanet
    from phoi_training.import_model.configuration import Configuration

    configuration = Configuration.of_bundle(source)
    preprocessing = retinanet.read_preprocessing(configuration)
    detector = retinanet.build_detector(configuration)
    weights = retinanet.load_weights(detector.network, source)
    parameters = retinanet.parameters_of(
        detector,
        preprocessing,
        name=wishes.name or _as_name(str(metadata.get("name") or source.resolve().name)),
        version=str(metadata.get("version", "")),
        patch=wishes.patch,
        operating_points=wishes.operating_points,
    )
    _warn_if_large(parameters.patch_shape)
    retinanet.export(detector, parameters, onnx_file)
    volume = agreement.small_part(_volume(check_on), parameters)
    run = agreement.in_onnx_runtime(onnx_file, parameters)
    agreed = agreement.compare(detector, parameters, volume, run)
    card = source / "docs" / "README.md"
    return Imported(
        parameters,
        Origin(
            f"MONAI bundle, weights {_identity(weights)}",
            metadata,
            [agreed.sentence("a CT" if check_on else "a procedural phantom")],
        ),
        licence,
        card if card.is_file() else None,
    )


def _from_onnx(source: Path, wishes: Wishes, onnx_file: Path) -> Imported:
    from phoi_training.import_model import plain_onnx

    manifest = plain_onnx.read_manifest(source)
    licence = wishes.licence or source.parent / manifest.licence
    if not licence.is_file():
        raise CannotImport(f"there is no licence at {licence.name}: give --licence FILE")
    own = {"calibration": {"slope": 1.0, "intercept": 0.0}, **manifest.parameters}
    points = {n: point.model_dump() for n, point in wishes.operating_points.items()}
    changes: dict[str, Any] = {"operating_points": points}
    if wishes.name is not None:
        changes["name"] = wishes.name
    if wishes.patch is not None:
        changes["patch_shape"] = wishes.patch
    parameters = validate_parameters({**own, **changes}, f"{source.name}: parameters")
    if parameters.second_look is not None:
        raise CannotImport("a second look cannot be imported: leave second_look out")
    plain_onnx.adopt(manifest, source.parent, parameters.outputs, onnx_file)
    plain_onnx.try_out(onnx_file, parameters)
    told = {"description": manifest.description} if manifest.description else {}
    checked = (
        "it runs in ONNX Runtime with the shapes it promises; there was no original to compare"
    )
    weights = source.parent / manifest.model
    origin = Origin(f"ONNX file {_identity(weights)}", told, [checked])
    return Imported(parameters, origin, licence)


def _warn_if_large(patch: Index) -> None:
    if math.prod(patch) > _LARGE_PATCH:
        typer.echo(
            f"patches of {patch} voxels need much memory; if this fails, give smaller ones,"
            " as --patch 192,192,80",
            err=True,
        )


def _metadata(source: Path) -> Mapping[str, Any]:
    try:
        metadata = json.loads((source / METADATA).read_bytes())
    except OSError:
        raise CannotImport(f"{source.name} has no {METADATA}: it is no MONAI bundle") from None
    except ValueError:
        raise CannotImport(f"{METADATA} is not JSON") from None
    if not isinstance(metadata, dict):
        raise CannotImport(f"{METADATA} holds no mapping")
    channels = _at(metadata, "network_data_format", "inputs", "image").get("num_channels", 1)
    if channels != 1:
        raise CannotImport(f"{METADATA}: the network takes {channels} channels; a CT has one")
    return metadata


def _at(content: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """A mapping inside mappings; empty if there is none."""
    for key in keys:
        inner = content.get(key)
        content = inner if isinstance(inner, dict) else {}
    return content


def _licence_in(source: Path) -> Path:
    for name in _LICENCES:
        if (source / name).is_file():
            return source / name
    raise CannotImport("the bundle has no licence file: give --licence FILE with its licence")


def _as_name(title: str) -> str:
    """A model's name as the registry wants it: "Lung nodule CT" becomes "lung-nodule-ct"."""
    return re.sub("[^a-z0-9]+", "-", title.lower()).strip("-")[:64]


def _identity(path: Path) -> str:
    return f"`{path.name}`, SHA-256 `{hashlib.sha256(path.read_bytes()).hexdigest()}`"


def _volume(check_on: Path | None) -> Volume:
    """The CT to compare on."""
    if check_on is None:
        import numpy as np
        from phoi_models.phantom import chest_phantom

        return chest_phantom(np.random.default_rng(0))
    from phoi_models.reading.dicom_series import is_dicom, read_volume
    from phoi_models.reading.files import read_volume_file

    if check_on.is_file():
        return read_volume_file(check_on)
    files = [path for path in sorted(check_on.iterdir()) if path.is_file() and is_dicom(path)]
    if not files:
        raise PhoiError(f"{check_on.name} holds no DICOM files")
    return read_volume(files)[0]


def _write(folder: Path, imported: Imported) -> None:
    """All of the bundle but its network, which lies there, and its manifest."""
    for name in ("configs", "docs"):
        (folder / name).mkdir()
    told = {key: value for key, value in imported.origin.told.items() if key != "phoi"}
    parameters = imported.parameters
    content = {**told, "version": parameters.version, "phoi": parameters.model_dump(mode="json")}
    (folder / METADATA).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    card = imported_card(parameters, imported.origin)
    (folder / "docs" / "README.md").write_text(card, encoding="utf-8")
    shutil.copyfile(imported.licence, folder / "LICENSE")
    if imported.original_card is not None:
        shutil.copyfile(imported.original_card, folder / _ORIGINAL_CARD)
