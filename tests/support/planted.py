"""Patients that exist in tests only, and the search for them in whatever leaves an installation.

A text is read in every way in which a program may have written it (JSON and URL escapes, HTML
entities, base64, UTF-16, UTF-8 taken for Latin-1, archives) and folded: no accents, no case, no
punctuation. So "Nguyễn^Thị Ánh Tuyết", "nguyen thi anh tuyet" and "Nguy%E1%BB%85n+..." are alike.
"""

from __future__ import annotations

import base64
import gzip
import html
import io
import re
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from urllib.parse import unquote_plus

PATIENT_ID = "BN-7301946528"
ISSUER = "BVTRONG"
NAME = "Nguyễn^Thị Ánh Tuyết"
BIRTH_DATE = "19600229"
ACCESSION_NUMBER = "CT-4821093765"

# Folded. Of a name the part that nobody else has; dates in the orders in which people write them.
SECRETS: Mapping[str, tuple[str, ...]] = {
    "name": ("ANH TUYET", "VAN BI MAT"),
    "patient id": ("7301946528", "SOMEBODY ELSE"),
    "birth date": ("19600229", "1960 02 29", "29 02 1960", "29021960", "02 29 1960", "29 2 1960"),
    "accession number": ("4821093765",),
}
_NEEDLES = {f" {form} ": kind for kind, forms in SECRETS.items() for form in forms}
_ESCAPED = re.compile(r"\\u([0-9a-fA-F]{4})|\\x([0-9a-fA-F]{2})")
_PERCENT = re.compile("%[0-9a-fA-F]{2}")
_ENTITY = re.compile("&#?[0-9a-zA-Z]{2,8};")
# Taken out first: it is most of a binary file.
_NO_LATIN = re.compile("[^\x00-\u024f\u0300-\u036f\u1ea0-\u1eff]+")
_ACCENTS = re.compile("[\u0300-\u036f]+")
# How Vietnamese letters begin where their UTF-8 was taken for Latin-1.
_TAKEN_FOR_LATIN_1 = re.compile("\u00c3|\u00e1\u00ba|\u00e1\u00bb")
_NO_WORD = re.compile(r"[^0-9A-Z]+")
_DEPTH = 3  # of archives within archives


def _base64_forms(text: str) -> Iterator[str]:
    """The letters that a text has in base64, wherever in a longer one it stands."""
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + text.encode()).rstrip(b"=")
        inner = encoded[-(-before * 8 // 6) : -1].decode()
        yield inner
        yield inner.replace("+", "-").replace("/", "_")


_IN_BASE64 = {
    form: kind
    for kind, texts in {
        "name": (NAME, "Ánh Tuyết", "Anh Tuyet", "ANH TUYET", "BÍ MẬT"),
        "patient id": ("7301946528",),
        "birth date": (BIRTH_DATE, "1960-02-29"),
        "accession number": ("4821093765",),
    }.items()
    for text in texts
    for form in _base64_forms(text)
}


def secrets_in(content: bytes | str) -> frozenset[str]:
    """Which kinds of secret a text, a file or an archive holds."""
    if isinstance(content, str):
        return _in_text(content)
    return frozenset(kind for text in _texts(content) for kind in _in_text(text))


def _in_text(text: str) -> frozenset[str]:
    folded = {kind for reading in _readings(text) for kind in _in_folded(fold(reading))}
    return frozenset(folded | {kind for form, kind in _IN_BASE64.items() if form in text})


def _in_folded(folded: str) -> Iterator[str]:
    for needle, kind in _NEEDLES.items():
        if needle in folded:
            yield kind


def fold(text: str) -> str:
    """Capital letters and digits without accents; one space for all else, also at both ends."""
    if not text.isascii():
        text = _NO_LATIN.sub(" ", text).replace("Đ", "D").replace("đ", "d")
        text = _ACCENTS.sub("", unicodedata.normalize("NFD", text))
    return f" {_NO_WORD.sub(' ', text.upper())} "


def _readings(text: str) -> Iterator[str]:
    yield text
    if _ESCAPED.search(text):
        unescaped = _ESCAPED.sub(lambda m: chr(int(m[1] or m[2], 16)), text)
        yield unescaped
        yield unescaped.encode("latin-1", "ignore").decode("utf-8", "ignore")
    if _PERCENT.search(text):
        yield unquote_plus(text)
    if _ENTITY.search(text):
        yield html.unescape(text)
    if _TAKEN_FOR_LATIN_1.search(text):
        yield text.encode("cp1252", "ignore").decode("utf-8", "ignore")
        yield text.encode("latin-1", "ignore").decode("utf-8", "ignore")


def _texts(content: bytes, depth: int = 0) -> Iterator[str]:
    yield content.decode("utf-8", "ignore")
    if b"\0" in content:
        for encoding in ("utf-16-le", "utf-16-be"):
            yield content.decode(encoding, "ignore")
            yield content[1:].decode(encoding, "ignore")
    if depth < _DEPTH:
        for member in _members(content):
            yield from _texts(member, depth + 1)


def _members(content: bytes) -> Iterator[bytes]:
    """Names and contents of what an archive holds; nothing where it is none."""
    file = io.BytesIO(content)
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            for name in archive.namelist():
                yield name.encode()
                yield archive.read(name)
    elif content.startswith(b"\x1f\x8b"):
        try:
            yield gzip.decompress(content)
        except (OSError, EOFError, zlib.error):
            return
    elif content[257:262] == b"ustar":
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                yield member.name.encode()
                if (inner := archive.extractfile(member)) is not None:
                    yield inner.read()
