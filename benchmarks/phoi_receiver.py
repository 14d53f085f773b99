"""Phoi's receiver and all that it does before it answers, as a process of its own.

    python -m benchmarks.phoi_receiver FOLDER PORT {lean,pynetdicom} {durable,not-durable}

Without durability no file and no folder is synced to disk: only here, to see what it costs.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from phoi_edge_node.dicom.instance_files import InstanceFiles
from phoi_edge_node.dicom.storage_scp import StorageScp
from phoi_edge_node.dicom.taking import InstanceTaker
from phoi_edge_node.intake import StudyIntake
from phoi_edge_node.settings import DicomSettings
from phoi_edge_node.sql.engine import open_engine
from phoi_edge_node.sql.sql_store import SqlStore
from phoi_edge_node.system import SystemClock


class UnsyncedFiles(InstanceFiles):
    """What is stored survives the process, not the machine."""

    def sync_file(self, descriptor: int) -> None:
        """Not at all."""

    def sync_folders(self, folders: Sequence[Path]) -> Sequence[None]:
        """Not at all."""
        return [None] * len(folders)


def main() -> None:
    """Until SIGTERM."""
    folder, port, receiver, durable = sys.argv[1:]
    settings = DicomSettings.model_validate(
        {"port": port, "receiver": receiver, "minimum_free_disk_mb": 0}
    )
    root, clock = Path(folder), SystemClock()
    engine = open_engine(f"sqlite:///{root / 'phoi.sqlite'}")
    files = InstanceFiles(root / "instances")
    if durable != "durable":
        files = UnsyncedFiles(root / "instances")
    intake = StudyIntake(SqlStore(engine, clock), clock, settings.quiet_time_s)
    scp = StorageScp(settings, InstanceTaker(settings, files, intake, clock), clock)
    scp.start()
    signal.sigwait({signal.SIGTERM})
    scp.stop()


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    main()
