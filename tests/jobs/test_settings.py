"""Settings: read from the environment, refused with the variable's name, quiet about secrets."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jobs.errors import BadSettings
from jobs.settings import Settings


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("HALFTONE_") or name == "REDIS_URL"]:
        monkeypatch.delenv(name)


def test_defaults_follow_the_desktop_standard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    settings = Settings.load()
    assert settings.results_dir == tmp_path / "halftone" / "results"
    assert settings.heartbeat_seconds * 3 == settings.lease_seconds == 30
    assert settings.redis_url is None


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALFTONE_MODELS", "/a/one:/b/two")
    monkeypatch.setenv("HALFTONE_NULL_MODEL", "1")
    monkeypatch.setenv("HALFTONE_DISK_FLOOR_BYTES", "5")
    monkeypatch.setenv("HALFTONE_DATA", "relative")
    monkeypatch.setenv("REDIS_URL", "redis://:pa55@host/0")
    settings = Settings.load()
    assert settings.models == (Path("/a/one"), Path("/b/two"))
    assert (settings.allow_null_model, settings.disk_floor_bytes) == (True, 5)
    assert settings.data == Path.cwd() / "relative"
    assert settings.redis_url is not None
    assert settings.redis_url.get_secret_value() == "redis://:pa55@host/0"
    assert "pa55" not in repr(settings)
    monkeypatch.setenv("HALFTONE_REDIS_URL", "unix:///run/x.sock")
    assert "x.sock" in str((Settings.load().redis_url or "") and Settings.load().redis_url.get_secret_value())  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("HALFTONE_LEASE_SECONDS", "soon", "number"),
        ("HALFTONE_LEASE_SECONDS", "0", "greater than 0"),
        ("HALFTONE_MAX_QUEUE", "-1", "greater than or equal to 1"),
        ("HALFTONE_NAMESPACE", "a'b", "pattern"),
        ("HALFTONE_NULL_MODEL", "perhaps", "boolean"),
    ],
)
def test_what_is_wrong_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(BadSettings) as fault:
        Settings.load()
    assert name in fault.value.message
    assert repr(value) in fault.value.message
    assert expected in fault.value.message


def test_a_wrong_secret_is_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "http://:pa55@host")
    with pytest.raises(BadSettings, match="redis://") as fault:
        Settings.load()
    assert "REDIS_URL" in fault.value.message
    assert "pa55" not in fault.value.message
