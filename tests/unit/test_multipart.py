"""Multipart bodies of DICOM files: the same parts however they are cut, and no body breaks it."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from phoi_edge_node.dicom.multipart import DICOM_FILE, Malformed, Part, Parts, boundary_of

_BOUNDARY = "b-1"
_ENDS = (b"\r\n", b"\r\n--b-1", b"--b-1--", b"\r\n--b-", b"\0")
_CONTENT = st.lists(st.one_of(st.binary(max_size=40), st.sampled_from(_ENDS[:1] + _ENDS[3:])))


def _body(contents: list[bytes]) -> bytes:
    head = b"--b-1\r\nContent-Type: Application/DICOM; transfer-syntax=*\r\n\r\n"
    return b"".join(head + content + b"\r\n" for content in contents) + b"--b-1--\r\n"


def _feed(body: bytes, cuts: list[int], largest: int = 10_000) -> tuple[list[Part], bool]:
    parts = Parts(_BOUNDARY, largest)
    places = sorted({0, len(body), *(cut % (len(body) + 1) for cut in cuts)})
    found = [part for start, end in pairwise(places) for part in parts.feed(body[start:end])]
    return found, parts.ended


@given(st.lists(_CONTENT.map(b"".join), min_size=1, max_size=4), st.lists(st.integers(0, 9999)))
def test_parts_are_the_same_however_the_body_is_cut(contents: list[bytes], cuts: list[int]) -> None:
    wanted = [content for content in contents if b"\r\n--b-1" not in b"\r\n" + content]
    found, ended = _feed(_body(wanted), cuts)
    assert [bytes(part.content) for part in found] == wanted
    assert {part.content_type for part in found} <= {DICOM_FILE}
    assert ended is bool(wanted)


@given(st.binary(max_size=50), st.integers(0, 40))
def test_a_part_never_holds_more_than_it_may(content: bytes, largest: int) -> None:
    found, _ = _feed(_body([content.replace(b"-", b"")]), [], largest)
    for part in found:
        assert len(part.content) <= largest
        assert part.truncated is (len(content.replace(b"-", b"")) > largest)


@given(st.lists(st.one_of(st.binary(max_size=30), st.sampled_from(_ENDS)), max_size=12))
def test_any_other_body_is_malformed_or_has_parts(pieces: list[bytes]) -> None:
    with suppress(Malformed):
        found, _ = _feed(b"".join(pieces), [7, 20, 33])
        assert all(isinstance(part, Part) for part in found)


@given(st.text(max_size=80))
def test_no_content_type_breaks_it(value: str) -> None:
    assert boundary_of(f"multipart/related; boundary={value}").isascii()
    assert boundary_of(value.replace("multipart", "")) == ""
