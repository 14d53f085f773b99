"""An MLLP receiver that acknowledges every message and keeps it. For the demo and for tests only.

``python -m phoi_edge_node.stand_ins.mllp --folder DIR --port PORT``. python-hl7 frames, parses
and acknowledges: none of Phoi's own HL7 code takes part. One file for each message control id, so
that a message sent twice lies there once.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import signal
from pathlib import Path

import hl7
from hl7.mllp import HL7StreamReader, HL7StreamWriter, start_hl7_server

from phoi_edge_node.stand_ins.program import announce

MAXIMUM_MESSAGE = 1 << 20


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--answer", choices=["AA", "AE", "AR"], default="AA")
    arguments = parser.parse_args()
    asyncio.run(_serve(arguments.folder, arguments.port, arguments.answer))


async def _serve(folder: Path, port: int, answer: str) -> None:
    async def connected(reader: HL7StreamReader, writer: HL7StreamWriter) -> None:
        try:
            while True:
                message = await reader.readmessage()
                if answer == "AA":
                    _keep(message, folder)
                writer.writemessage(message.create_ack(answer))
                await writer.drain()
        except asyncio.IncompleteReadError:
            pass  # the peer has said all it had to say
        finally:
            writer.close()

    server = await start_hl7_server(
        connected, "127.0.0.1", port, limit=MAXIMUM_MESSAGE, encoding="utf-8"
    )
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    announce(server.sockets[0].getsockname()[1])
    async with server:
        await stopped.wait()


def _keep(message: hl7.Message, folder: Path) -> None:
    control_id = str(message.segment("MSH")[10])
    name = hashlib.sha256(control_id.encode()).hexdigest()[:16]  # never a path from a peer's text
    unfinished = folder / f"{name}.part"
    unfinished.write_text(str(message), encoding="utf-8", newline="")
    unfinished.replace(folder / f"{name}.hl7")


if __name__ == "__main__":
    main()
