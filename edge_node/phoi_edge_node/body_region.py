"""Does a CT study show a chest, by its texts? Better one study too many than one left behind."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

# Beginnings of words, small letters without diacritics; English, Vietnamese, and the values of
# Body Part Examined (0018,0015), PS3.16 annex L.
_CHEST = re.compile(
    r"\b(chest|thora|lung|pulmo|mediast|trach|bronch|ldct|cap\b|tap\b|whole ?body|wholebody"
    r"|nguc|phoi|trung that|toan than)"
)
_ELSEWHERE = re.compile(
    r"\b(head|brain|skull|cranio|sinus|orbit|facial|face|mandib|dental|temporal|neck|cervic"
    r"|spine|lspine|cspine|lumb|sacr|abdom|abdo\b|pelvi|liver|kidney|renal|pancrea|colon|uro"
    r"|hip\b|femur|thigh|knee|leg\b|ankle|foot|shoulder|arm\b|elbow|wrist|hand|extremity"
    r"|so nao|nao\b|xoang|ham mat|bung|gan\b|tieu khung|khung chau|cot song|khop|goi\b|chan\b)"
)


def may_show_chest(study_description: str, series_texts: Iterable[str]) -> bool:
    """Judge a study by its description and the texts of its CT series.

    A text that names the chest speaks for it. A study is passed over only where the texts name
    other regions of the body, each series or else the whole study, and none names the chest.

    Args:
        series_texts: Series Description and Body Part Examined of each CT series, joined.
    """
    texts = [_plain(text) for text in series_texts]
    study = _plain(study_description)
    if any(_CHEST.search(text) for text in (study, *texts)):
        return True
    if _ELSEWHERE.search(study):
        return False
    return not texts or not all(_ELSEWHERE.search(text) for text in texts)


def _plain(text: str) -> str:
    """Small letters without diacritics; what is no letter becomes a space."""
    letters = unicodedata.normalize("NFD", text.lower().replace("đ", "d"))
    without_marks = "".join(c for c in letters if not unicodedata.combining(c))
    return " ".join(re.sub(r"[^a-z]+", " ", without_marks).split())
