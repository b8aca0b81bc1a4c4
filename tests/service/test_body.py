"""Bounded reading of JSON bodies: what is read, and what is refused with which status."""

from __future__ import annotations

import pytest

from jobs.errors import InvalidRequest
from service.body import MAX_DEPTH, MAX_KEYS, parse_object
from service.errors import MalformedBody, status_of


def nested(depth: int) -> bytes:
    """An object of so many levels."""
    return b'{"a":' * (depth - 1) + b"{}" + b"}" * (depth - 1)


def test_reads_an_object() -> None:
    assert parse_object('{"prompt": "café", "n": 2, "g": 1.5e0, "x": null}'.encode()) == {
        "prompt": "café",
        "n": 2,
        "g": 1.5,
        "x": None,
    }


@pytest.mark.parametrize(
    "raw",
    [b"", b"nul", b"{", b'{"a": NaN}', b'{"a": Infinity}', b"\xef\xbb\xbf{}", b'{"a": "\xff"}', b"{}{}", b'{"a" 1}'],
)
def test_what_is_not_json_is_malformed(raw: bytes) -> None:
    with pytest.raises(MalformedBody) as caught:
        parse_object(raw)
    assert status_of(caught.value) == 400


@pytest.mark.parametrize(
    "raw",
    [
        b"null",
        b"[]",
        b'"text"',
        b"7",
        b'{"a": 1, "a": 2}',
        b'{"a": {"b": 1, "b": 1}}',
        b'{"a": 1e999}',
        b'{"a": ' + b"9" * 100_000 + b"}",
        b'{"a": "\\ud800"}',
        b'{"\\ud800": 1}',
        nested(MAX_DEPTH + 1),
        b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b"{" + b",".join(b'"k%d": 1' % i for i in range(MAX_KEYS + 1)) + b"}",
    ],
    ids=lambda raw: raw[:24].decode("ascii", "replace"),
)
def test_json_out_of_bounds_is_invalid(raw: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_object(raw)
    assert status_of(caught.value) == 422


def test_the_bounds_themselves_are_allowed() -> None:
    assert parse_object(nested(MAX_DEPTH))
    assert len(parse_object(b"{" + b",".join(b'"k%d": 1' % i for i in range(MAX_KEYS)) + b"}")) == MAX_KEYS


def test_a_repeated_key_is_named() -> None:
    with pytest.raises(InvalidRequest, match="'seed' appears twice") as caught:
        parse_object(b'{"prompt": "x", "seed": 1, "seed": 2}')
    assert caught.value.param == "seed"
