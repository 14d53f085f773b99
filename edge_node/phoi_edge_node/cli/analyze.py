"""``phoi analyze``: the whole pipeline on one CT, in one process, without servers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Annotated

import typer
from phoi_models.errors import NotAnalysable
from phoi_models.findings import Region
from phoi_models.home import find_home
from phoi_models.identity import ModelIdentity
from phoi_models.logs import configure_logs
from phoi_models.reading.dicom_series import is_dicom
from phoi_models.reading.files import is_volume_file, read_volume_file
from phoi_models.volume import Volume
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from phoi_edge_node.cli.analysis_json import analysis_json
from phoi_edge_node.cli.nodule_table import ABOUT_SIZE_CLASSES, nodule_table
from phoi_edge_node.dicom.documents import DicomEncoder
from phoi_edge_node.dicom.headers import BadHeader, instance_from_file
from phoi_edge_node.dicom.series_reader import DicomSeriesReader
from phoi_edge_node.errors import EdgeError, InferenceFailed
from phoi_edge_node.ports import (
    AnalysisRequest,
    InferenceService,
    ReceivedInstance,
    ReportedCase,
    ReportStatus,
    SeriesChoice,
)
from phoi_edge_node.result import Outcome, ResultIdentity, TriageResult
from phoi_edge_node.system import RandomUids, SystemClock
from phoi_edge_node.triage import make_result, not_analysable_result

_MODEL = "phoi-lung-nodule"
_NOT_ANALYSABLE_STATUS = 3


def command(
    path: Annotated[
        Path, typer.Argument(help="A folder of DICOM files, or a NIfTI, NRRD or MetaImage file.")
    ],
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the result as JSON to this file.")
    ] = None,
    objects: Annotated[
        Path | None,
        typer.Option(help="Write the DICOM objects that an archive would get to this folder."),
    ] = None,
    roi: Annotated[
        Region, typer.Option(help="Look inside the lungs, or at the whole volume.")
    ] = Region.LUNGS,
) -> None:
    """Analyse one CT: choose the series, find the nodules, measure them.

    The result is a suggestion for a radiologist. It is no diagnosis.

    Exit status: 0 analysed, 3 the images cannot be analysed, 1 error.
    """
    configure_logs("warning")
    case, result = analyze(path, roi)
    if json_file is not None:
        _write(json_file, result)
    if objects is not None:
        _write_objects(objects, case, result)
    _show(result)
    if result.outcome is Outcome.NOT_ANALYSABLE:
        raise typer.Exit(_NOT_ANALYSABLE_STATUS)


def _write(json_file: Path, result: TriageResult) -> None:
    document = json.dumps(analysis_json(result), indent=2, ensure_ascii=False)
    try:
        json_file.write_text(document + "\n", encoding="utf-8")
    except OSError as error:
        raise EdgeError(f"{json_file} cannot be written: {error.strerror}") from None


def _write_objects(folder: Path, case: Case, result: TriageResult) -> None:
    """What DICOM archives would get of a first, preliminary result.

    Raises:
        EdgeError: the volume is of no DICOM file, or the folder cannot be written to.
    """
    if not case.instances:
        raise EdgeError("--objects needs DICOM files: other files do not say whose CT it is")
    volume = case.content if isinstance(case.content, Volume) else None
    reported = ReportedCase(
        study=case.instances[0].study,
        result=result,
        status=ReportStatus.PRELIMINARY,
        instances=case.instances,
        choice=case.choice,
        volume=volume,
    )
    encoder = DicomEncoder(case.root, RandomUids(), version("phoi"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for document in encoder.encode(reported):
            (folder / f"{document.kind.value}.dcm").write_bytes(document.content)
    except OSError as error:
        raise EdgeError(f"{folder} cannot be written to: {error.strerror}") from None


@dataclass(frozen=True, eq=False)
class Case:
    """What is to be analysed.

    Attributes:
        root: the folder of the instances.
        instances: of the study; none where the volume comes from another kind of file.
        choice: None where no series could be chosen, or there are none.
    """

    root: Path
    instances: tuple[ReceivedInstance, ...]
    choice: SeriesChoice | None
    series_reason: str
    content: Volume | NotAnalysable

    @property
    def study_instance_uid(self) -> str:
        """UID of the study, or "" where a file has none."""
        return self.instances[0].study_instance_uid if self.instances else ""

    @property
    def series_instance_uid(self) -> str:
        """UID of the series that was chosen, or ""."""
        return self.choice.series_instance_uid if self.choice else ""


def analyze(path: Path, roi: Region) -> tuple[Case, TriageResult]:
    """The CT at ``path`` and the result for it, with a progress bar on stderr.

    Raises:
        PhoiError: nothing there, several studies, no model, or the analysis failed.
    """
    inference = _in_process()
    model = _newest(inference)
    started = time.perf_counter()
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("read", total=1.0)
        case = _read(path)
        read_s = time.perf_counter() - started
        result = _analyze(
            case,
            model,
            inference,
            roi,
            lambda step, done: progress.update(task, description=step, completed=done),
        )
    total_s = time.perf_counter() - started
    timing_s = {"read": read_s, **result.timing_s, "total": total_s}
    return case, replace(result, timing_s=timing_s)


def _in_process() -> InferenceService:
    """The adapter that another package registers, so that this one need not import it."""
    (entry_point,) = entry_points(group="phoi.inference", name="in-process")
    try:
        adapter = entry_point.load()
    except ImportError as error:
        raise EdgeError(
            f"{error.name} is not installed, and models need it: pip install 'phoi[worker]'"
        ) from None
    home = find_home()
    service: InferenceService = adapter(store=home.models, trust=home.trust)
    return service


def _newest(inference: InferenceService) -> ModelIdentity:
    for model in inference.models():
        if model.name == _MODEL:
            return model
    raise InferenceFailed(f"no model named {_MODEL} is installed: run `phoi models init` first")


def _analyze(
    case: Case,
    model: ModelIdentity,
    inference: InferenceService,
    roi: Region,
    on_progress: Callable[[str, float], None],
) -> TriageResult:
    content = case.content
    digest = content.digest() if isinstance(content, Volume) else ""
    identity = ResultIdentity(
        case.study_instance_uid, case.series_instance_uid, digest, model, revision=1
    )
    now = SystemClock().now()
    try:
        if isinstance(content, NotAnalysable):
            raise content
        request = AnalysisRequest(digest, model, content, region=roi)
        analysis = inference.analyze(request, on_progress, cancelled=lambda: False)
    except NotAnalysable as refusal:
        return not_analysable_result(identity, refusal, case.series_reason, now)
    return make_result(identity, analysis, case.series_reason, RandomUids(), now)


def _read(path: Path) -> Case:
    if not path.exists():
        raise EdgeError(f"{path}: no such file or folder")
    if path.is_file() and is_volume_file(path):
        return _read_file(path)
    return _read_study(path)


def _read_file(path: Path) -> Case:
    reason = f"the only volume of {path.name}"
    try:
        return Case(path.parent, (), None, reason, read_volume_file(path))
    except NotAnalysable as refusal:
        return Case(path.parent, (), None, reason, refusal)


def _read_study(path: Path) -> Case:
    root = path if path.is_dir() else path.parent
    instances = _find_instances(root, path)
    reader = DicomSeriesReader(root)
    try:
        choice = reader.choose(instances)
    except NotAnalysable as refusal:
        return Case(root, instances, None, "", refusal)
    try:
        volume = reader.read(choice)
    except NotAnalysable as refusal:
        return Case(root, instances, choice, choice.reason, refusal)
    return Case(root, instances, choice, choice.reason, volume)


def _find_instances(root: Path, path: Path) -> tuple[ReceivedInstance, ...]:
    """The instances of one study, each once, at or below ``path``.

    Raises:
        EdgeError: there are none, or they belong to several studies.
    """
    found: dict[str, ReceivedInstance] = {}
    unusable = 0
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        if not is_dicom(file):
            continue
        try:
            instance = instance_from_file(root, str(file.relative_to(root)))
        except BadHeader:
            unusable += 1
            continue
        found.setdefault(instance.sop_instance_uid, instance)
    if unusable:
        Console(stderr=True).print(f"{unusable} damaged or foreign DICOM files were left out")
    studies = {instance.study_instance_uid for instance in found.values()}
    if not studies:
        raise EdgeError(f"{path}: no DICOM images there, and no NIfTI, NRRD or MetaImage file")
    if len(studies) > 1:
        raise EdgeError(f"{path} holds {len(studies)} studies: give the folder of one of them")
    return tuple(found.values())


def _show(result: TriageResult) -> None:
    console = Console()
    if result.series_reason:
        console.print(f"Series: {escape(result.series_reason)}")
    if result.outcome is Outcome.NOT_ANALYSABLE:
        console.print(f"[bold]Not analysable[/]: {escape(result.detail)}")
        return
    model = result.identity.model
    console.print(f"Model: {model.name} {model.version}; {_outcome(result)}")
    if result.nodules:
        console.print(nodule_table(result.nodules))
        console.print(ABOUT_SIZE_CLASSES)
    console.print(f"Suggested priority: {result.suggested_priority.value}")
    console.print(_timing(result.timing_s), highlight=False)


def _outcome(result: TriageResult) -> str:
    if result.outcome is Outcome.NEGATIVE:
        return "no nodule found"
    if result.outcome is Outcome.LIMITED:
        return f"limited: {result.detail}"
    count = len(result.nodules)
    return f"{count} suspected nodule{'s' if count > 1 else ''}"


def _timing(timing_s: Mapping[str, float]) -> str:
    return "Seconds: " + ", ".join(f"{step} {s:.2f}" for step, s in timing_s.items())
