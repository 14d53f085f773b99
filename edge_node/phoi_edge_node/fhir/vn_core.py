"""Patients' numbers as the draft Viet Nam Core names them (0.6.0, community draft, R4). Pure.

Source: NamingSystems vn-cccd-ns and vn-bhyt-ns of http://fhir.hl7.org.vn/core, whose identifier
slices of Patient are told apart by their system. The draft's coded types of identifiers are left
out: a slice takes none as well, and a wrong one would break it. No profile is claimed: VN Core's
Patient holds more than images tell.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from phoi_edge_node.fhir.elements import Json, identifier, string
from phoi_edge_node.orders import PatientKey

CITIZEN = "http://fhir.hl7.org.vn/core/sid/cccd"
INSURANCE = "http://fhir.hl7.org.vn/core/sid/bhyt"
# Who gave a number, as images and messages may call it without any setting.
ISSUERS = {"CCCD": CITIZEN, "BHYT": INSURANCE}
# A health insurance card bears a citizen's number since 2025-08-15, a social insurance number
# since 2021-04-01, and two letters with 13 digits before.
_FORMS = {
    CITIZEN: re.compile(r"[0-9]{12}"),
    INSURANCE: re.compile(r"[0-9]{12}|[0-9]{10}|[A-Z]{2}[0-9]{13}"),
}


def national_identifier(key: PatientKey, systems: Mapping[str, str]) -> Json | None:
    """A citizen's or an insurance number as an Identifier; None where it is not one.

    Args:
        systems: identifier system by issuer, as this site set them.
    """
    system = systems.get(key.issuer) or ISSUERS.get(key.issuer, "")
    form, number = _FORMS.get(system), string(key.patient_id)
    return identifier(system, number) if form and form.fullmatch(number) else None


def national_identifiers(keys: Sequence[PatientKey], systems: Mapping[str, str]) -> Iterator[Json]:
    """Those among a patient's numbers."""
    for key in keys:
        if found := national_identifier(key, systems):
            yield found
