"""What a crash leaves on disk: half-written files, and whole ones that were never indexed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from phoi_edge_node.dicom.headers import BadHeader, instance_from_file
from phoi_edge_node.dicom.instance_files import InstanceFiles, study_folder
from phoi_edge_node.ports import Intake
from phoi_edge_node.store import StudyStore
from phoi_edge_node.study import StudyState


@dataclass(frozen=True)
class Recovered:
    """How many files were half-written, and how many were indexed now."""

    half_written: int
    indexed: int


def recover_files(
    files: InstanceFiles, store: StudyStore, retire: Callable[[str], None]
) -> Recovered:
    """Bring the index up to what lies on disk. Call before receiving.

    Of most studies only the number of files is compared: a crash leaves files that are not indexed,
    never the reverse. So a start costs one count over the index and one look into each folder. Of
    those that are being received every name is compared: what a power cut takes out of the index
    after success was answered is theirs (``sql/indexing.py``), and would not show in a number where
    a file was lost as well.

    Args:
        retire: sets aside what is left of a study whose images were being removed.
    """
    half_written = files.sweep()
    indexed = {study_folder(uid): (uid, n) for uid, n in store.instance_counts().items()}
    receiving = set(store.receiving_studies())
    found = 0
    for folder, paths in files.folders():
        uid, number = indexed.get(folder, ("", 0))
        if number != len(paths) or uid in receiving:
            known = {instance.path for instance in store.instances(uid)} if uid else set()
            new = files.in_order_of_arrival(path for path in paths if path not in known)
            found += sum(_index(files, store, retire, path) for path in new)
    return Recovered(half_written, found)


def _index(
    files: InstanceFiles, store: StudyStore, retire: Callable[[str], None], path: str
) -> int:
    if not (files.root / path).exists():
        return 0  # retired with the file before it
    try:
        instance = instance_from_file(files.root, path)
    except (BadHeader, OSError):
        files.quarantine(path)
        return 0
    study = store.study(instance.study_instance_uid)
    if study is not None and study.state is StudyState.EXPIRED:
        retire(instance.study_instance_uid)
        return 0
    if store.add_instance(instance) in {Intake.CONFLICT, Intake.OTHER_PATIENT}:
        files.quarantine(path)
        return 0
    return 1
