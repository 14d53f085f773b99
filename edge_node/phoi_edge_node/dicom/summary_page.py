"""One page that says it all, for archives and viewers that show neither SR nor SEG.

Vietnamese first, English beside it. Letters are of DejaVu Sans, which has all of Vietnamese and
is shipped in ``fonts`` with its licence: Pillow's own font has not.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime
from functools import cache
from pathlib import Path

from phoi_models.volume import Volume
from PIL import Image, ImageDraw, ImageFont

from phoi_edge_node import terms
from phoi_edge_node.dicom.key_slice import draw_key_slice, key_slice
from phoi_edge_node.person_name import person_name
from phoi_edge_node.ports import ReportedCase, ReportStatus
from phoi_edge_node.reported import (
    ReportedNodule,
    accession_number,
    impression,
    reported_nodules,
    reported_outcome,
    stated_priority,
    warnings,
)
from phoi_edge_node.result import Outcome, StudyHeader, Verdict

WIDTH = 1280
_MARGIN = 32
_PICTURES_A_ROW = 3
_MAXIMUM_ROWS = 20
_MAXIMUM_PICTURES = 6
_FONT = Path(__file__).parent / "fonts" / "DejaVuSans.ttf"

Colour = tuple[int, int, int]
_BLACK: Colour = (0, 0, 0)
_WHITE: Colour = (255, 255, 255)
_GREY: Colour = (170, 170, 170)
_AMBER: Colour = (255, 200, 0)
_ORANGE: Colour = (255, 130, 60)
# NEGATIVE alone is calm; what is neither positive nor negative must not look like it.
_OUTCOME_COLOURS: dict[Outcome, Colour] = {
    Outcome.POSITIVE: _AMBER,
    Outcome.NEGATIVE: (150, 220, 150),
    Outcome.LIMITED: _ORANGE,
    Outcome.NOT_ANALYSABLE: _ORANGE,
    Outcome.FAILED: (255, 90, 90),
}
_RED: Colour = (255, 90, 90)
_NO_ANSWER = frozenset({Outcome.LIMITED, Outcome.NOT_ANALYSABLE, Outcome.FAILED, None})

# Columns of the table: x, Vietnamese, English.
_COLUMNS = (
    (_MARGIN, "Nốt", "Nodule"),
    (110, "Vị trí", "Site"),
    (400, "ĐK TB (mm)", "Mean"),
    (510, "Dài × ngắn (mm)", "Long × short"),
    (700, "Thể tích (mm³)", "Volume"),
    (860, "Tỷ trọng", "Attenuation"),
    (1010, "Lung-RADS*", "by size"),
    (1140, "Là nốt", "Is nodule"),
)
_DASH = "–"


class _Page:
    """A column of lines that grows downwards."""

    def __init__(self) -> None:
        self._image = Image.new("RGB", (WIDTH, 4000), _BLACK)
        self._draw = ImageDraw.Draw(self._image)
        self.y = _MARGIN

    def line(self, text: str, size: int, colour: Colour = _WHITE, gap: int = 10) -> None:
        """Text over the whole width, broken between words."""
        for part in _wrapped(text, font(size), WIDTH - 2 * _MARGIN):
            self._draw.text((_MARGIN, self.y), part, fill=colour, font=font(size))
            self.y += round(size * 1.3)
        self.y += gap

    def row(self, cells: Sequence[str], size: int, colour: Colour = _WHITE) -> None:
        """One row of the table."""
        for (x, _, _), cell in zip(_COLUMNS, cells, strict=True):
            self._draw.text((x, self.y), cell, fill=colour, font=font(size))
        self.y += round(size * 1.5)

    def rule(self) -> None:
        """A thin line across."""
        self._draw.line((_MARGIN, self.y, WIDTH - _MARGIN, self.y), fill=_GREY)
        self.y += 14

    def picture(self, picture: Image.Image, x: int, caption: str) -> None:
        """A picture with its caption below, at the present height."""
        self._image.paste(picture, (x, self.y))
        self._draw.text((x, self.y + picture.height + 4), caption, fill=_AMBER, font=font(17))

    def finished(self) -> Image.Image:
        """The page, as high as what stands on it."""
        return self._image.crop((0, 0, WIDTH, self.y + _MARGIN))


def draw_summary(
    case: ReportedCase,
    phoi_version: str,
    at: datetime,
    remarks: Sequence[tuple[str, str]] = (),
) -> Image.Image:
    """The summary of a case: RGB, ``WIDTH`` pixels wide, as high as it needs.

    Args:
        at: time of the report, in the hospital's own zone.
        remarks: what a reader must know of the images, each in English and Vietnamese.
    """
    page = _Page()
    nodules = reported_nodules(case)
    _draw_banner(page, case.study, accession_number(case))
    _draw_outcome(page, case, remarks)
    if nodules:
        _draw_table(page, nodules)
        if case.volume:
            _draw_pictures(page, nodules[:_MAXIMUM_PICTURES], case.volume)
        page.rule()
    _draw_footer(page, case, phoi_version, at)
    return page.finished()


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, ``size`` pixels. The basic layout is the same on every machine."""
    return ImageFont.truetype(_FONT, size, layout_engine=ImageFont.Layout.BASIC)


def _draw_banner(page: _Page, study: StudyHeader, accession: str) -> None:
    patient = study.patient
    page.line("PHOI AI · Tóm tắt nốt phổi trên CT ngực / Lung nodule summary", 26)
    page.line(f"{person_name(patient.name).text or _DASH}    ID {patient.patient_id or _DASH}", 30)
    born = _day(patient.birth_date)
    started = _day(study.started_at)
    page.line(
        f"Ngày sinh / Born {born}    Giới / Sex {patient.sex or _DASH}    "
        f"Ngày chụp / Study {started}    Số phiếu / Accession {accession or _DASH}",
        19,
        _GREY,
    )
    page.rule()


def _draw_outcome(page: _Page, case: ReportedCase, remarks: Sequence[tuple[str, str]]) -> None:
    outcome = reported_outcome(case)
    colour = _OUTCOME_COLOURS[outcome] if outcome else _RED
    en, vi = impression(case)[0]
    page.line(vi, 34, colour, gap=2)
    page.line(en, 22, colour)
    for warning_en, warning_vi in (*warnings(case), *remarks):
        page.line(warning_vi, 26, _ORANGE, gap=2)
        page.line(warning_en, 20, _ORANGE)
    if outcome in _NO_ANSWER:
        page.line("Hãy đọc phim như khi không có AI / Read the images as without AI", 26, colour)
    if (stated := stated_priority(case)) is not None:
        priority = terms.PRIORITIES[stated]
        page.line(f"Đề xuất ưu tiên / Suggested priority: {priority.vi} / {priority.en}", 20)
    colour = _AMBER if case.status is ReportStatus.PRELIMINARY else _WHITE
    notice_en, notice_vi = terms.STATUS_NOTICES[case.status]
    page.line(notice_vi, 20, colour, gap=2)
    page.line(notice_en, 17, colour)
    if case.review:
        page.line(f"Người ký / Signed by: {case.review.reviewer_name}", 20)
    page.rule()


def _draw_table(page: _Page, nodules: Sequence[ReportedNodule]) -> None:
    page.row([vi for _, vi, _ in _COLUMNS], 17, _GREY)
    page.row([en for _, _, en in _COLUMNS], 14, _GREY)
    for nodule in nodules[:_MAXIMUM_ROWS]:
        page.row(_cells(nodule), 19)
        page.row(_english_cells(nodule), 14, _GREY)
    more = len(nodules) - _MAXIMUM_ROWS
    if more > 0:
        page.line(f"và {more} nốt nữa trong báo cáo SR / and {more} more in the SR", 19, _AMBER)
    if len(nodules) > _MAXIMUM_PICTURES:
        n = _MAXIMUM_PICTURES
        page.line(f"Hình của {n} nốt đầu / Pictures of the first {n}", 17, _GREY)
    page.y += 8


def _cells(nodule: ReportedNodule) -> tuple[str, ...]:
    finding = nodule.nodule.finding if nodule.nodule else None
    measured = finding if nodule.measured_by_model else None
    by_person = "bác sĩ thêm" if nodule.verdict is Verdict.MISSED else "bác sĩ đo"
    return (
        str(nodule.number),
        nodule.site.vi if nodule.site else _DASH,
        _DASH if nodule.mean_diameter_mm is None else f"{nodule.mean_diameter_mm:.1f}",
        f"{measured.long_axis_mm:.1f} × {measured.short_axis_mm:.1f}" if measured else by_person,
        f"{measured.volume_mm3:.0f}" if measured else _DASH,
        terms.ATTENUATIONS[finding.attenuation].vi if finding else _DASH,
        nodule.size_class.lung_rads if nodule.size_class else _DASH,
        f"{100 * finding.probability:.0f} %" if finding else _DASH,
    )


def _english_cells(nodule: ReportedNodule) -> tuple[str, ...]:
    """What of the row is words, in English."""
    by_person = "added by reader" if nodule.verdict is Verdict.MISSED else "measured by reader"
    attenuation = terms.ATTENUATIONS[nodule.nodule.finding.attenuation].en if nodule.nodule else ""
    measured = nodule.measured_by_model
    return ("", _english_site(nodule), "", "" if measured else by_person, "", attenuation, "", "")


def _english_site(nodule: ReportedNodule) -> str:
    """The scheme's words for an anatomic structure, as a person says them."""
    words = nodule.site.en if nodule.site else ""
    return words.removeprefix("Structure of ").removesuffix(" structure").capitalize()


def _draw_pictures(page: _Page, nodules: Sequence[ReportedNodule], volume: Volume) -> None:
    gap = 12
    size = (WIDTH - 2 * _MARGIN - (_PICTURES_A_ROW - 1) * gap) // _PICTURES_A_ROW
    shown = [(n, z) for n in nodules if (z := key_slice(n, volume.geometry)) is not None]
    for start in range(0, len(shown), _PICTURES_A_ROW):
        for column, (nodule, z) in enumerate(shown[start : start + _PICTURES_A_ROW]):
            site = f"{nodule.site.vi} / {_english_site(nodule)}" if nodule.site else ""
            page.picture(
                draw_key_slice(nodule, volume, z, size, font(22)),
                _MARGIN + column * (size + gap),
                f"{nodule.number}  {site}",
            )
        page.y += size + 40


def _draw_footer(page: _Page, case: ReportedCase, phoi_version: str, at: datetime) -> None:
    page.line("Không dùng để chẩn đoán chính / Not for primary diagnosis", 20, _AMBER)
    if reported_nodules(case):
        page.line(
            "* Tạm tính chỉ theo kích thước và tỷ trọng, nếu là tầm soát lần đầu; không phải phân "
            "loại xử trí / Provisional, by size and attenuation alone, if this is a baseline "
            "screening; not a management category",
            15,
            _GREY,
        )
    model = case.result.identity.model
    page.line(
        f"{model.name} {model.version} · phoi {phoi_version} · {at:%d/%m/%Y %H:%M %z}", 15, _GREY
    )


def _day(day: date | None) -> str:
    return f"{day:%d/%m/%Y}" if day else _DASH


def _wrapped(text: str, letters: ImageFont.FreeTypeFont, width: int) -> list[str]:
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if letters.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
