"""A program that decodes in processes, says which, and waits to be killed."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from phoi_edge_node.dicom.decoding import DecodingProcesses


def main() -> None:
    processes = DecodingProcesses(2)
    for future in [processes.submit(Path(path)) for path in sys.argv[1:]]:
        future.result()
    assert processes._pool is not None
    sys.stdout.write(" ".join(map(str, processes._pool._processes)) + "\n")
    sys.stdout.flush()
    time.sleep(600)


if __name__ == "__main__":
    main()
