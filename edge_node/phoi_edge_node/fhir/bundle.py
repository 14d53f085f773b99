"""The result of a triage as a FHIR R4 transaction Bundle.

What others own (Patient, ImagingStudy) and what never changes (Device, Provenance) is created only
where nothing with its identity is there; what Phoi says (DiagnosticReport, Observation, Task) is
updated by its identifier. So the same Bundle sent twice changes nothing, and a correction replaces.
Nothing is deleted: what no longer stands becomes ``entered-in-error``.

Sources: FHIR R4 (4.0.1), 3.1.0.11.2 (transactions); ``AIAST`` of v3-ObservationValue marks what an
AI asserted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from phoi_edge_node.fhir.elements import DOCUMENTS, identifier, instant
from phoi_edge_node.fhir.resources import Context, entries
from phoi_edge_node.ports import Document, DocumentKind, ReportedCase, UidSource
from phoi_edge_node.reported import reported_at
from phoi_edge_node.settings import FhirSettings, SiteSettings


class FhirEncoder:
    """Encodes a case as one transaction Bundle, JSON, UTF-8."""

    def __init__(
        self, settings: FhirSettings, site: SiteSettings, uids: UidSource, phoi_version: str
    ) -> None:
        self._settings = settings
        self._site = site
        self._uids = uids
        self._phoi_version = phoi_version

    def encode(self, case: ReportedCase) -> Sequence[Document]:
        """One Bundle; its identity is the value of its identifier."""
        identity = self._uids.dicom_uid()
        context = Context(
            case=case,
            site=self._site.name,
            document=identity,
            phoi_version=self._phoi_version,
            patient_systems=self._settings.patient_identifier_systems,
            vn_core=self._settings.vn_core,
        )
        bundle = {
            "resourceType": "Bundle",
            "identifier": identifier(DOCUMENTS, identity),
            "type": "transaction",
            "timestamp": instant(reported_at(case)),
            "entry": [entry.to_json() for entry in entries(context)],
        }
        content = json.dumps(bundle, ensure_ascii=False, separators=(",", ":"))
        return (Document(DocumentKind.FHIR_BUNDLE, identity, content.encode()),)
