"""FHIR R4: results to an EMR. No FHIR JSON leaves this package."""
