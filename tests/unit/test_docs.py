"""The parts of the documentation that the code knows best are as the code says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    subprocess.run([sys.executable, str(ROOT / "scripts/generate-docs"), str(folder)], check=True)
    return folder


@pytest.mark.parametrize("name", ["states.md", "settings.md", "commands.md", "doctor.md"])
def test_the_reference_is_what_the_code_says(written: Path, name: str) -> None:
    committed = (ROOT / "docs/reference" / name).read_text(encoding="utf-8")
    assert committed == (written / name).read_text(encoding="utf-8"), "run scripts/generate-docs"


def _pages() -> list[Path]:
    pages = [*ROOT.glob("*.md"), *ROOT.glob("*/README.md"), *(ROOT / "docs").rglob("*.md")]
    return [page for page in pages if ".venv" not in page.parts]


@pytest.mark.parametrize("page", _pages(), ids=lambda p: str(p.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [t for t in targets if not (page.parent / t).exists()] == []


def test_the_readme_names_every_command_of_make_that_it_promises() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    promised = set(
        re.findall(r"(?:`|^    )make ([a-z]+)", (ROOT / "README.md").read_text("utf-8"), re.M)
    )
    assert promised
    assert {name for name in promised if not re.search(rf"^{name}:", makefile, re.M)} == set()
