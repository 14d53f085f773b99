"""The page of one study: its pictures, its marks, and what a reviewer says of them."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Form, HTTPException, Path
from fastapi.responses import JSONResponse, RedirectResponse, Response
from phoi_models.findings import Finding
from phoi_models.geometry import as_triple

from phoi_edge_node.desk import StudyView
from phoi_edge_node.reported import ReportedNodule
from phoi_edge_node.result import Correction, Nodule, Verdict
from phoi_edge_node.web.display import Display, display_of
from phoi_edge_node.web.visitor import Member, PostingMember, SignedIn

router = APIRouter(prefix="/studies/{uid}")

Uid = Annotated[str, Path(pattern=r"^[0-9.]{1,64}$")]
TrackingUid = Annotated[str, Form(pattern=r"^[0-9.]{1,64}$")]
Revision = Annotated[int, Path(ge=1)]
Diameter = Annotated[float | None, Form(gt=0, le=300, allow_inf_nan=False)]
Coordinate = Annotated[float, Form(allow_inf_nan=False)]
Note = Annotated[str, Form(max_length=500)]


class RejectReason(StrEnum):
    """Why a mark is no nodule. The value is stored, so that false marks can be counted by cause."""

    VESSEL = "vessel"
    SCAR = "scar"
    PLEURA = "pleura"
    ATELECTASIS = "atelectasis"
    LYMPH_NODE = "lymph_node"
    OUTSIDE = "outside"
    ARTEFACT = "artefact"
    OTHER = "other"


# --- what is seen ----------------------------------------------------------------------------


@router.get("")
def show_study(member: SignedIn, uid: Uid) -> Response:
    """The page."""
    view = member.web.desk.study(uid)
    member.web.desk.log_access(
        member.account.username, "view_study", uid, f"revision {view.row.revision}"
    )
    return _render(member, "study.html", view)


@router.get("/status")
def show_status(member: SignedIn, uid: Uid) -> Response:
    """The part of the page that is fetched again every few seconds."""
    return _render(member, "_status.html", member.web.desk.study(uid))


@router.get("/revisions/{revision}/viewer.json")
def viewer_data(member: SignedIn, uid: Uid, revision: Revision) -> Response:
    """How the pictures lie in the patient, and the outlines of the nodules."""
    volume = member.web.desk.volume(uid, revision)
    view = member.web.desk.study(uid)
    display = display_of(volume.geometry)
    return JSONResponse(_stack(display) | {"nodules": [_mark(n, display) for n in view.nodules]})


@router.get("/revisions/{revision}/slices/{index}")
def slice_pixels(member: SignedIn, uid: Uid, revision: Revision, index: int) -> Response:
    """One displayed slice: int16 HU, little endian, axes (row, column), gzip."""
    volume = member.web.desk.volume(uid, revision)
    try:
        pixels = display_of(volume.geometry).slice_of(volume.hu, index)
    except IndexError:
        raise HTTPException(404) from None
    body = gzip.compress(pixels.astype("<i2", copy=False).tobytes(), compresslevel=1)
    return Response(
        body, media_type="application/octet-stream", headers={"Content-Encoding": "gzip"}
    )


# --- what is done ----------------------------------------------------------------------------


@router.post("/decisions")
def decide(
    member: PostingMember,
    uid: Uid,
    tracking_uid: TrackingUid,
    verdict: Annotated[Verdict, Form()],
    mean_diameter_mm: Diameter = None,
    reason: Annotated[RejectReason | None, Form()] = None,
    note: Note = "",
) -> Response:
    """Accept, modify or reject one mark."""
    needed: Mapping[Verdict, bool] = {
        Verdict.ACCEPTED: True,
        Verdict.MODIFIED: mean_diameter_mm is not None,
        Verdict.REJECTED: reason is not None,
        Verdict.MISSED: False,
    }
    if not needed[verdict]:
        raise HTTPException(422)
    correction = Correction(
        mean_diameter_mm=mean_diameter_mm if verdict is Verdict.MODIFIED else None
    )
    parts = [reason.value if reason and verdict is Verdict.REJECTED else "", note.strip()]
    member.web.desk.decide(
        uid, tracking_uid, verdict, member.account, ": ".join(p for p in parts if p), correction
    )
    return _review(member, uid, tracking_uid)


@router.post("/missed")
def mark_missed(
    member: PostingMember,
    uid: Uid,
    revision: Annotated[int, Form(ge=1)],
    slice_index: Coordinate,
    row: Coordinate,
    column: Coordinate,
    mean_diameter_mm: Diameter = None,
    note: Note = "",
) -> Response:
    """Add a nodule where the reviewer clicked: fractional indices of the displayed stack."""
    geometry = display_of(member.web.desk.volume(uid, revision).geometry).geometry
    place = np.array([slice_index, row, column])
    if (place < -0.5).any() or (place > np.array(geometry.shape) - 0.5).any():
        raise HTTPException(422)
    center = as_triple(geometry.index_to_lps(place))
    tracking_uid = member.web.desk.mark_missed(
        uid, revision, center, mean_diameter_mm, member.account, note.strip()
    )
    return _review(member, uid, tracking_uid)


@router.post("/undo")
def undo(member: PostingMember, uid: Uid) -> Response:
    """Take back the latest judgement."""
    return _review(member, uid, member.web.desk.undo(uid, member.account))


@router.post("/sign")
def sign(
    member: PostingMember,
    uid: Uid,
    revision: Annotated[int, Form(ge=1)],
    judgements_seen: Annotated[int, Form(ge=0)],
) -> Response:
    """Sign what the reviewer saw."""
    member.web.desk.sign(uid, revision, judgements_seen, member.account)
    return RedirectResponse(f"/studies/{uid}", 303)


@router.post("/acknowledge")
def acknowledge(member: PostingMember, uid: Uid, revision: Annotated[int, Form(ge=1)]) -> Response:
    """Say that it was seen that Phoi could not read this study."""
    member.web.desk.acknowledge(uid, revision, member.account)
    return RedirectResponse(f"/studies/{uid}", 303)


@router.post("/recalled")
def confirm_recalled(member: PostingMember, uid: Uid) -> Response:
    """Say that the signed result holds although its model was recalled."""
    member.web.desk.confirm_recalled(uid, member.account)
    return RedirectResponse(f"/studies/{uid}", 303)


# --- helpers ---------------------------------------------------------------------------------


def _review(member: Member, uid: str, selected: str) -> Response:
    """The review panel as it is now; a header names the mark to select."""
    response = _render(member, "_review.html", member.web.desk.study(uid))
    response.headers["X-Phoi-Selected"] = selected
    return response


def _render(member: Member, template: str, view: StudyView) -> Response:
    return member.page(
        template,
        view=view,
        row=view.row,
        patient=view.header.patient,
        result=view.result,
        marks=_marks(view),
        reject_reasons=tuple(RejectReason),
        state=f"{view.row.phase}.{view.row.revision}.{len(view.history)}.{_standing(view)}",
    )


def _marks(view: StudyView) -> dict[str, ReportedNodule]:
    """Every mark as the report would tell it now, by tracking UID: same numbers, same sizes."""
    marks = [
        ReportedNodule(n.number, n.tracking_uid, n, view.dispositions.get(n.tracking_uid))
        for n in view.nodules
    ]
    first = len(view.nodules) + 1
    marks += [ReportedNodule(i, d.tracking_uid, None, d) for i, d in enumerate(view.missed, first)]
    return {mark.tracking_uid: mark for mark in marks}


def _standing(view: StudyView) -> int:
    """Undoing adds no judgement: how many stand tells it."""
    return sum(1 for judgement in view.history if not judgement.undone_by)


def _stack(display: Display) -> dict[str, object]:
    geometry = display.geometry
    labels = display.labels
    return {
        "shape": geometry.shape,
        "spacing_mm": geometry.spacing_mm,
        "origin_lps_mm": geometry.origin_lps_mm,
        "index_to_lps": geometry.matrix.tolist(),
        "lps_to_index": np.linalg.inv(geometry.matrix).tolist(),
        "labels": {
            "left": labels.left,
            "right": labels.right,
            "top": labels.top,
            "bottom": labels.bottom,
        },
    }


def _mark(nodule: Nodule, display: Display) -> dict[str, object]:
    finding: Finding = nodule.finding
    mask = display.mask_of(finding.mask)
    return {
        "tracking_uid": nodule.tracking_uid,
        "offset": mask.offset,
        "shape": mask.voxels.shape,
        "bits": base64.b64encode(np.packbits(mask.voxels).tobytes()).decode(),
        "long_axis": [display.index_of(end) for end in finding.long_axis_lps_mm],
        "short_axis": [display.index_of(end) for end in finding.short_axis_lps_mm],
    }
