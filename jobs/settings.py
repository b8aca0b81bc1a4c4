"""What an operator may set for the shared ground, read from HALFTONE_* variables. Knows neither HTTP nor devices."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Self

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from jobs.errors import BadSettings

DAY = 86_400


def default_data() -> Path:
    """Where data lies when nobody says: `$XDG_DATA_HOME/halftone`, else `~/.local/share/halftone`."""
    home = os.environ.get("XDG_DATA_HOME")
    return (Path(home) if home else Path.home() / ".local" / "share") / "halftone"


class Settings(BaseSettings):
    """Settings that gateway and workers must agree on; each room extends this class with its own.

    Every field is set by `HALFTONE_<NAME>`; `redis_url` also by `REDIS_URL`. Use `load()` in processes: it says which
    variable is wrong and what was expected.
    """

    model_config = SettingsConfigDict(env_prefix="HALFTONE_", extra="forbid", frozen=True, validate_by_name=True)

    data: Path = Field(default_factory=default_data, description="Folder of everything that is kept on disk.")
    redis_url: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("HALFTONE_REDIS_URL", "REDIS_URL"),
        description="A Redis to use; when unset, one is started and supervised in the data folder.",
    )
    namespace: str = Field("halftone", pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="Prefix of every Redis key.")
    models: Annotated[tuple[Path, ...], NoDecode] = Field((), description="Model folders, separated as PATH is.")
    allow_null_model: bool = Field(
        False, validation_alias=AliasChoices("HALFTONE_NULL_MODEL"), description="Offer the benches' model `null`."
    )

    lease_seconds: float = Field(30, gt=0, le=3600, description="Silence after which a worker's jobs go to others.")
    ageing_seconds: float = Field(
        300, gt=0, description="Head start of a priority over the next lower one; nothing waits longer behind it."
    )
    queue_wait_seconds: float = Field(4 * 3600, gt=0, description="A job queued longer than this fails as `expired`.")
    max_queue: int = Field(1000, ge=1, description="Jobs that may wait in all.")
    max_queued_per_key: int = Field(50, ge=1, description="Jobs that may wait per API key.")
    max_suspect_attempts: int = Field(3, ge=1, description="Times a job may kill its worker before it fails.")
    max_deliveries: int = Field(10, ge=1, description="Times a job is handed out before it fails, whatever the reason.")
    idempotency_seconds: int = Field(DAY, ge=1, description="How long an idempotency key is remembered.")
    result_ttl_seconds: int = Field(DAY, ge=1, le=7 * DAY, description="How long result files are kept.")
    record_ttl_seconds: int = Field(7 * DAY, ge=1, description="How long a finished job's record is kept.")
    disk_floor_bytes: int = Field(2 * 1024**3, ge=0, description="Free space under which jobs are refused.")

    @field_validator("models", mode="before")
    @classmethod
    def _split_paths(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(Path(part) for part in value.split(os.pathsep) if part)
        return value

    @field_validator("data", mode="after")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("redis_url", mode="after")
    @classmethod
    def _redis_scheme(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None or not value.get_secret_value():
            return None
        if not value.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("must start with redis://, rediss:// or unix://")
        return value

    @classmethod
    def load(cls) -> Self:
        """Read the environment; raises `BadSettings` naming each wrong variable, its value and what was expected."""
        try:
            return cls()
        except ValidationError as error:
            raise BadSettings(_explain(cls, error)) from None

    @property
    def heartbeat_seconds(self) -> float:
        """How often leases are renewed and workers report: three times per lease."""
        return self.lease_seconds / 3

    @property
    def results_dir(self) -> Path:
        """Folder of result files."""
        return self.data / "results"

    @property
    def redis_dir(self) -> Path:
        """Folder of the embedded Redis: its append-only file, socket, log and lock."""
        return self.data / "redis"

    @property
    def models_dir(self) -> Path:
        """Folder in which every subfolder is a model."""
        return self.data / "models"

    @property
    def artifacts_dir(self) -> Path:
        """Folder of quantized artifacts: `<model>/<profile>/manifest.json`."""
        return self.data / "artifacts"

    @property
    def cache_dir(self) -> Path:
        """Folder of compiled kernels and other things that can be made again."""
        return self.data / "cache"


def _explain(settings: type[Settings], error: ValidationError) -> str:
    lines = []
    for fault in error.errors():
        key = str(fault["loc"][0]) if fault["loc"] else ""  # of a list, the variable that holds it
        field = settings.model_fields.get(key)
        name = f"{settings.model_config.get('env_prefix', '')}{key}".upper() if field is not None else key
        secret = "redis_url" in key.lower() or "secret" in key.lower() or "key" in key.lower()
        shown = "(hidden)" if secret else repr(fault["input"])
        lines.append(f"{name}={shown}: {fault['msg']}")
    return "wrong settings: " + "; ".join(lines)
