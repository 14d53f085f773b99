"""The worked examples of docs/how-to/fit-hl7-to-your-hospital.md."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "fit-hl7-to-your-hospital.md"

_EXAMPLE = re.compile(r"\n## ([^\n]+)\n(?:(?!\n## ).)*?\n```toml\n(.*?)```", re.DOTALL)

# TOML by what stands in its heading.
EXAMPLES: Mapping[str, str] = dict(_EXAMPLE.findall(PAGE.read_text(encoding="utf-8")))
