"""An archive that takes whatever is stored and keeps it. For the demo and for tests only.

``python -m phoi_edge_node.stand_ins.archive --folder DIR --port PORT``. One Part 10 file for each
SOP Instance UID, so that an instance sent twice lies there once.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.events import Event

from phoi_edge_node.stand_ins.program import announce

VERIFICATION = "1.2.840.10008.1.1"
SUCCESS = 0x0000
CANNOT_UNDERSTAND = 0xC000
_UID = re.compile(r"[0-9.]{1,64}")


def main() -> None:
    """Serve until SIGTERM ends the process; files are whole or not there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--ae-title", default="ARCHIVE")
    arguments = parser.parse_args()

    entity = AE(ae_title=arguments.ae_title)
    entity.supported_contexts = AllStoragePresentationContexts
    entity.add_supported_context(VERIFICATION)
    server = entity.make_server(
        ("127.0.0.1", arguments.port),
        evt_handlers=[(evt.EVT_C_STORE, _store, [arguments.folder])],
    )
    announce(server.server_address[1])
    server.serve_forever()


def _store(event: Event, folder: Path) -> int:
    request = event.request
    uid = str(request.AffectedSOPInstanceUID) if isinstance(request, C_STORE) else ""
    if not _UID.fullmatch(uid):  # never a path from a peer's text
        return CANNOT_UNDERSTAND
    unfinished = folder / f"{uid}.part"
    unfinished.write_bytes(event.encoded_dataset())
    unfinished.replace(folder / f"{uid}.dcm")
    return SUCCESS


if __name__ == "__main__":
    main()
