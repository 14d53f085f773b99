"""HL7 v2 over MLLP: results to an EMR. No segment leaves this package."""
