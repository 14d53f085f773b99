"""The search for planted patients finds them however they are written, and nobody else."""

from __future__ import annotations

import base64
import gzip
import html
import io
import json
import tarfile
import unicodedata
import zipfile
from urllib.parse import quote, quote_plus

import pytest
from support.planted import ACCESSION_NUMBER, BIRTH_DATE, NAME, PATIENT_ID, secrets_in

PLAIN = "Nguyễn Thị Ánh Tuyết"


@pytest.mark.parametrize(
    "written",
    [
        NAME,
        PLAIN,
        PLAIN.upper(),
        "NGUYEN THI ANH TUYET",
        "nguyen-thi-anh-tuyet.dcm",
        "Thị Ánh Tuyết, Nguyễn",
        unicodedata.normalize("NFD", PLAIN),
        json.dumps({"name": PLAIN}),
        repr(PLAIN.encode()),
        html.escape("<Ánh Tuyết>"),
        "Ánh Tuyết".encode("ascii", "xmlcharrefreplace").decode(),
        f"/studies?patient={quote(PLAIN)}",
        f"/studies?patient={quote_plus(PLAIN)}&x",
        PLAIN.encode().decode("latin-1"),
        PLAIN.encode("utf-16-le"),
        b"\xff" + PLAIN.encode("utf-16-be"),
        *(f"Basic {base64.b64encode(b'x' * n + PLAIN.encode()).decode()}" for n in range(3)),
        base64.urlsafe_b64encode(NAME.encode()),
    ],
)
def test_a_name_is_found_however_it_is_written(written: str | bytes) -> None:
    assert secrets_in(written) == {"name"}


@pytest.mark.parametrize(
    "written",
    [BIRTH_DATE, "1960-02-29", "29/02/1960", "29.2.1960", "02/29/1960", '"birthDate":"1960-02-29"'],
)
def test_a_birth_date_is_found(written: str) -> None:
    assert secrets_in(written) == {"birth date"}


@pytest.mark.parametrize("written", [PATIENT_ID, f"{PATIENT_ID}^^^BVTRONG^MR", "7301946528"])
def test_a_number_is_found_with_and_without_its_issuer(written: str) -> None:
    assert secrets_in(written) == {"patient id"}
    assert secrets_in(f"|{ACCESSION_NUMBER}|") == {"accession number"}


def test_archives_are_opened() -> None:
    zipped, tarred = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("case.json", json.dumps({"patient": PLAIN}))
    with tarfile.open(fileobj=tarred, mode="w:gz") as tar:
        info = tarfile.TarInfo("nested.zip")
        info.size = len(zipped.getvalue())
        tar.addfile(info, io.BytesIO(zipped.getvalue()))
    for content in (zipped.getvalue(), tarred.getvalue(), gzip.compress(tarred.getvalue())):
        assert secrets_in(content) == {"name"}


@pytest.mark.parametrize(
    "written",
    [
        "",
        "2.25.119600229219371073019465281",  # within a UID
        "study 1.2.840.113619 analysed: 3 nodules, phantoms 1",
        "Bs. Trần Văn An",
        b"\x00\x01\xff PK\x03\x04 no archive \x1f\x8b",
    ],
)
def test_nobody_else_is_found(written: str | bytes) -> None:
    assert secrets_in(written) == frozenset()
