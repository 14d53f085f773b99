"""Wires storage commitment: who asks, who is asked, and when. Knows adapters."""

from __future__ import annotations

from phoi_edge_node.commitment import CommitmentClerk, CommitmentLedger
from phoi_edge_node.dicom.instance_files import InstanceFiles
from phoi_edge_node.dicom.storage_commitment import (
    ArchiveCommitment,
    CommitmentService,
    data_set_hash,
)
from phoi_edge_node.dicom.storage_scu import Peer
from phoi_edge_node.dicom.tls import client_context
from phoi_edge_node.loops import Loop
from phoi_edge_node.policies import RetryPolicy
from phoi_edge_node.ports import Clock, UidSource
from phoi_edge_node.settings import EdgeSettings

_REPORT_S = 1.0
_ASK_S = 30.0
_SEND_AGAIN_S = 5.0


class Committing:
    """Storage commitment of one node.

    Attributes:
        service: for the storage SCP.
        loops: to be run beside those of the node.
    """

    def __init__(
        self,
        settings: EdgeSettings,
        ledger: CommitmentLedger,
        files: InstanceFiles,
        clock: Clock,
        uids: UidSource,
        retry: RetryPolicy,
    ) -> None:
        calling, tls = settings.dicom.ae_title, client_context(settings.dicom)
        clerk = self._clerk = CommitmentClerk(
            ledger,
            [ArchiveCommitment(a, calling, tls) for a in settings.archives if a.commitment],
            lambda path: data_set_hash(files.root / path),
            clock,
            uids,
            lambda tries: retry.delay(tries, 0.5),
        )
        peers = {archive.ae_title: Peer.of(archive, tls) for archive in settings.archives}
        reports = Loop(
            "commitment-reports", lambda: clerk.report_next(self.service.report), _REPORT_S
        )
        self.service = CommitmentService(clerk, peers, calling, reports.nudge)
        self.loops = [reports]
        if any(archive.commitment for archive in settings.archives):
            self.loops += [
                Loop("commitment-requests", clerk.ask_next, _ASK_S),
                Loop("commitment-failures", clerk.send_failed_again, _SEND_AGAIN_S),
            ]

    def refused_by(self) -> tuple[str, ...]:
        """The archives that refuse to be asked, and are left alone until Phoi starts again."""
        return self._clerk.refused_by
