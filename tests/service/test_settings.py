"""The gateway refuses to start as an open door, and says which setting is wrong."""

from __future__ import annotations

import hashlib

import pytest

from jobs.errors import BadSettings
from service.settings import Settings, is_loopback

HASH = hashlib.sha256(b"key").hexdigest()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_this_machine_needs_no_key(host: str) -> None:
    assert is_loopback(host)
    assert Settings(host=host).api_key_hashes == ()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", ""])
def test_other_machines_need_one(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALFTONE_HOST", host)
    with pytest.raises(BadSettings, match="HALFTONE_API_KEY_HASHES"):
        Settings.load()
    monkeypatch.setenv("HALFTONE_ALLOW_ANONYMOUS", "1")
    assert Settings.load().host == host
    monkeypatch.setenv("HALFTONE_ALLOW_ANONYMOUS", "0")
    monkeypatch.setenv("HALFTONE_API_KEY_HASHES", f" {HASH.upper()} ,{HASH}")
    assert Settings.load().api_key_hashes == (HASH, HASH)


def test_a_wrong_value_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALFTONE_PORT", "seventy")
    with pytest.raises(BadSettings, match="HALFTONE_PORT='seventy'"):
        Settings.load()


def test_a_key_in_place_of_its_hash_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALFTONE_API_KEY_HASHES", "my-secret-key")
    with pytest.raises(BadSettings, match="64 hexadecimal digits") as caught:
        Settings.load()
    assert "my-secret-key" not in str(caught.value)
