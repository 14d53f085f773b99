"""FHIR R4 data types as JSON: codings, identifiers, quantities, conditions of a transaction."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from phoi_edge_node.terms import Term, plain_text

Json = dict[str, Any]

DICOM_UID = "urn:dicom:uid"
V2_0203 = "http://terminology.hl7.org/CodeSystem/v2-0203"
UCUM = "http://unitsofmeasure.org"


def phoi_system(of: str) -> str:
    """URI of one of Phoi's own systems of identifiers: a UUID-derived OID, the same everywhere."""
    return f"urn:oid:2.25.{uuid.uuid5(uuid.NAMESPACE_OID, f'phoi-{of}').int}"


REPORTS = phoi_system("reports")
OUTCOMES_OF_REPORTS = phoi_system("outcomes-of-reports")
TASKS = phoi_system("tasks")
DEVICES = phoi_system("devices")
DOCUMENTS = phoi_system("documents")
SITES = phoi_system("sites")


def identifier(system: str, value: str, type_code: str = "") -> Json:
    """An Identifier; ``type_code`` from HL7 table 0203."""
    made: Json = {"system": system, "value": value}
    if type_code:
        made["type"] = {"coding": [{"system": V2_0203, "code": type_code}]}
    return made


def dicom_identifier(uid: str) -> Json:
    """A DICOM UID as an Identifier (FHIR R4, ImagingStudy.identifier)."""
    return identifier(DICOM_UID, f"urn:oid:{uid}")


def matching(made: Json) -> str:
    """The search ``identifier=system|value`` that finds what carries this Identifier.

    Values come from images: FHIR's own delimiters are escaped with a backslash (R4, 3.1.1.3),
    then all is percent-encoded.
    """
    token = f"{_escaped(made['system'])}|{_escaped(made['value'])}"
    return f"identifier={quote(token, safe='')}"


def tagged(system: str, code: str) -> str:
    """The search ``_tag=system|code``."""
    return f"_tag={quote(f'{_escaped(system)}|{_escaped(code)}', safe='')}"


def _escaped(value: str) -> str:
    for special in ("\\", "$", ",", "|"):
        value = value.replace(special, f"\\{special}")
    return value


def coding(term: Term) -> Json:
    """A Coding."""
    return {"system": term.scheme.uri, "code": term.code, "display": term.en}


def concept(term: Term) -> Json:
    """A CodeableConcept; its text is Vietnamese and English."""
    return {"coding": [coding(term)], "text": f"{term.vi} / {term.en}"}


def coded(system: str, code: str, display: str) -> Json:
    """A CodeableConcept of a terminology that is not Phoi's choice."""
    return {"coding": [{"system": system, "code": code, "display": display}]}


def quantity(value: float, unit: str, digits: int = 1) -> Json:
    """A Quantity in UCUM."""
    return {"value": round(value, digits), "unit": unit, "system": UCUM, "code": unit}


def instant(at: datetime) -> str:
    """An instant, UTC, milliseconds."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def string(value: str) -> str:
    """A FHIR string."""
    return plain_text(value)


def full_url(key: str) -> str:
    """The name of an entry inside its Bundle: the same key gives the same name."""
    return f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, f'phoi-entry:{key}')}"


def reference(resource_type: str, key: str) -> Json:
    """A reference to another entry of the same Bundle."""
    return {"reference": full_url(key), "type": resource_type}
