"""An outgoing message for a person: one field in a line, with its name in the standard."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from phoi_edge_node.hl7v2.fields import SEGMENT_END

# HL7 2.5.1, chapters 2, 3, 4 and 7: those that Phoi writes, and those that sites ask for.
FIELD_NAMES: Mapping[str, Mapping[int, str]] = {
    "MSH": {
        2: "Encoding Characters",
        3: "Sending Application",
        4: "Sending Facility",
        5: "Receiving Application",
        6: "Receiving Facility",
        7: "Date/Time Of Message",
        8: "Security",
        9: "Message Type",
        10: "Message Control ID",
        11: "Processing ID",
        12: "Version ID",
        17: "Country Code",
        18: "Character Set",
        19: "Principal Language Of Message",
        21: "Message Profile Identifier",
    },
    "SFT": {
        1: "Software Vendor Organization",
        2: "Software Certified Version or Release Number",
        3: "Software Product Name",
        4: "Software Binary ID",
    },
    "PID": {
        1: "Set ID - PID",
        2: "Patient ID",
        3: "Patient Identifier List",
        4: "Alternate Patient ID - PID",
        5: "Patient Name",
        7: "Date/Time of Birth",
        8: "Administrative Sex",
        18: "Patient Account Number",
        19: "SSN Number - Patient",
    },
    "PV1": {
        1: "Set ID - PV1",
        2: "Patient Class",
        3: "Assigned Patient Location",
        7: "Attending Doctor",
        8: "Referring Doctor",
        19: "Visit Number",
    },
    "ORC": {
        1: "Order Control",
        2: "Placer Order Number",
        3: "Filler Order Number",
        5: "Order Status",
        8: "Parent",
        9: "Date/Time of Transaction",
        12: "Ordering Provider",
    },
    "OBR": {
        1: "Set ID - OBR",
        2: "Placer Order Number",
        3: "Filler Order Number",
        4: "Universal Service Identifier",
        7: "Observation Date/Time",
        13: "Relevant Clinical Information",
        16: "Ordering Provider",
        18: "Placer Field 1",
        19: "Placer Field 2",
        20: "Filler Field 1",
        21: "Filler Field 2",
        22: "Results Rpt/Status Chng - Date/Time",
        24: "Diagnostic Serv Sect ID",
        25: "Result Status",
        27: "Quantity/Timing",
        29: "Parent",
        31: "Reason for Study",
        32: "Principal Result Interpreter",
    },
    "TQ1": {1: "Set ID - TQ1", 9: "Priority"},
    "OBX": {
        1: "Set ID - OBX",
        2: "Value Type",
        3: "Observation Identifier",
        4: "Observation Sub-ID",
        5: "Observation Value",
        6: "Units",
        8: "Abnormal Flags",
        11: "Observation Result Status",
        14: "Date/Time of the Observation",
        15: "Producer's ID",
        16: "Responsible Observer",
        17: "Observation Method",
        18: "Equipment Instance Identifier",
        19: "Date/Time of the Analysis",
    },
}
_WIDTH = 52


def readable(content: bytes) -> Iterator[str]:
    """The fields of a message that Phoi wrote, as they stand in it; empty ones are left out."""
    for segment in content.decode("utf-8").split(SEGMENT_END):
        if segment:
            name, *values = segment.split("|")
            yield name
            first = 2 if name == "MSH" else 1  # MSH-1 is the separator itself
            for number, value in enumerate(values, start=first):
                if value:
                    title = f"{name}-{number} {FIELD_NAMES.get(name, {}).get(number, '')}"
                    yield f"  {title.rstrip():<{_WIDTH}} {value}"
