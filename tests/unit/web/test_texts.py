"""Every text exists in both languages, and every value that a page shows has one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from string import Formatter

import phoi_edge_node.web
import pytest
from phoi_edge_node.desk import LinkKind, LinkState, Phase, SwitchKind
from phoi_edge_node.ports import DocumentKind
from phoi_edge_node.result import Completeness, Outcome, Priority, Verdict
from phoi_edge_node.settings import SiteMode
from phoi_edge_node.study import DeliveryState
from phoi_edge_node.web.study import RejectReason
from phoi_edge_node.web.texts import LANGUAGES, TEXTS, say
from phoi_edge_node.web.worklist import Show
from phoi_models.errors import NotAnalysableReason
from phoi_models.findings import Attenuation, Lobe, Side

WEB = Path(phoi_edge_node.web.__file__).parent
SOURCES = [*WEB.glob("*.py"), *WEB.glob("templates/*.html")]
VALUES: dict[str, Iterable[str]] = {
    "attenuation": Attenuation,
    "completeness": Completeness,
    "delivery": DeliveryState,
    "document": DocumentKind,
    "link": [*LinkKind, *LinkState],
    "lobe": Lobe,
    "mode": SiteMode,
    "outcome": Outcome,
    "phase": Phase,
    "priority": [*Priority, "none"],
    "reason": NotAnalysableReason,
    "review.reason": RejectReason,
    "side": Side,
    "switch": SwitchKind,
    "verdict": [*Verdict, "none"],
    "worklist": Show,
    "viewer": ["L", "R", "A", "P", "H", "F"],
}


@pytest.mark.parametrize("prefix", VALUES)
def test_every_value_has_its_text(prefix: str) -> None:
    missing = [f"{prefix}.{value}" for value in VALUES[prefix] if f"{prefix}.{value}" not in TEXTS]
    assert not missing


def test_every_outcome_says_what_it_means() -> None:
    for outcome in Outcome:
        for language in LANGUAGES:
            hint = say(language, f"outcome.{outcome}.hint", count=1)
            wanted = {"vi": "Không được coi là âm tính", "en": "not a negative result"}[language]
            alarming = outcome in {Outcome.LIMITED, Outcome.NOT_ANALYSABLE, Outcome.FAILED}
            assert (wanted in hint) == alarming


@pytest.mark.parametrize("key", TEXTS)
def test_both_languages_have_the_same_fields(key: str) -> None:
    fields = [{name for _, name, _, _ in Formatter().parse(text) if name} for text in TEXTS[key]]
    assert fields[0] == fields[1]
    assert all(text.strip() for text in TEXTS[key])


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_every_text_that_is_asked_for_exists(source: Path) -> None:
    text = source.read_text(encoding="utf-8")
    asked = re.findall(r"""\b(?:t|text|say)\((?:\w+, ?)?["']([a-z_.A-Z0-9]+)["']\s*[,)]""", text)
    assert not [key for key in asked if key not in TEXTS]


def test_every_text_is_used() -> None:
    everything = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)
    prefixes = tuple(f"{prefix}." for prefix in VALUES)
    built = ("sex.", "time.", "kpis.", "audit.", "study.coverage.", "viewer.", "reason.")
    unused = [
        key
        for key in TEXTS
        if not key.startswith((*prefixes, *built))
        and f'"{key}"' not in everything
        and f"'{key}'" not in everything
    ]
    assert not unused
