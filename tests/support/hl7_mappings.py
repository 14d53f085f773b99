"""Every case as a message: as it is, and as docs/how-to/fit-hl7-to-your-hospital.md maps it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from phoi_edge_node.hl7v2.mapping import MessageMapping, parse_mapping
from phoi_edge_node.hl7v2.oru_r01 import OruEncoder
from phoi_edge_node.ports import Document
from phoi_edge_node.settings import Hl7Settings, SiteSettings

from support.cases import PHOI_VERSION, CountingUids
from support.told_cases import CASES

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "fit-hl7-to-your-hospital.md"

_EXAMPLE = re.compile(r"\n## ([^\n]+)\n(?:(?!\n## ).)*?\n```toml\n(.*?)```", re.DOTALL)

# TOML by what stands in its heading.
EXAMPLES: Mapping[str, str] = dict(_EXAMPLE.findall(PAGE.read_text(encoding="utf-8")))

MAPPINGS: Mapping[str, MessageMapping] = {"as it is": MessageMapping()} | {
    name: parse_mapping(toml, name) for name, toml in EXAMPLES.items()
}


def messages(mapping: MessageMapping, first: int = 1) -> Sequence[Document]:
    """A message for every case that the mapping tells of; MSH-10 counts from ``first``."""
    settings = Hl7Settings(host="127.0.0.1", port=1)
    uids, site = CountingUids(first), SiteSettings(name="bvdk")
    encoder = OruEncoder(settings, site, uids, PHOI_VERSION, mapping)
    return [document for case in CASES.values() for document in encoder.encode(case)]
