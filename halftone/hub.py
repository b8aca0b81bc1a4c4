"""`halftone pull`: a diffusers folder from the hub into the data folder, weights and text only. Knows no pipeline."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from tempfile import mkdtemp

from jobs.errors import HalftoneError, InvalidRequest, Unavailable
from jobs.settings import Settings

REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

WANTED = ("model_index.json", "*/*.json", "*/*.txt", "*/*.safetensors", "LICENSE*", "README.md")
UNWANTED = ("*.fp16.*", "*.bf16.*", "*.non_ema.*", "*.py")
"""Other precisions of the same weights would double the download; code is never run, so never fetched."""

SOURCE = ".pulled-from"
"""A file in the model's folder that names its repository."""


def pull_model(repo: str, revision: str | None, name: str | None) -> Path:
    """Downloads a model and gives its folder, which appears whole or not at all.

    Raises:
        InvalidRequest: the repository's or the model's name is none, or the model is there already.
        Unavailable: the hub cannot be reached, or has no such repository.
        HalftoneError: what came is no diffusers folder with safetensors.
    """
    if not REPO.fullmatch(repo):
        raise InvalidRequest(f"a repository is named owner/name; got {repo!r}", param="repo")
    model = name or repo.rpartition("/")[2]
    if not NAME.fullmatch(model):
        raise InvalidRequest(f"a model's id is letters, digits, dots, dashes, underscores; got {model!r}", param="name")
    root = Settings.load().models_dir
    target = root / model
    if target.exists():
        raise InvalidRequest(f"{target} exists; remove it, or choose another --name", param="name")
    root.mkdir(parents=True, exist_ok=True)
    # the catalog does not look into folders whose names begin with a dot
    staging = Path(mkdtemp(prefix=".pull-", dir=root))
    try:
        _download(repo, revision, staging)
        _check(staging, repo)
        (staging / SOURCE).write_text(repo + "\n", encoding="utf-8")
        staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def pulled(repo: str) -> Path | None:
    """The folder into which a repository was pulled under its own name; None where it was not, or that is another's."""
    folder = Settings.load().models_dir / repo.rpartition("/")[2]
    try:
        return folder if (folder / SOURCE).read_text(encoding="utf-8").strip() == repo else None
    except FileNotFoundError:
        return None


def _download(repo: str, revision: str | None, folder: Path) -> None:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        snapshot_download(
            repo, revision=revision, local_dir=folder, allow_patterns=list(WANTED), ignore_patterns=list(UNWANTED)
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError, httpx.HTTPError) as fault:
        text = " ".join(str(fault).split())
        raise Unavailable(
            f"cannot download {repo}: {text[:300]}. Without the hub: copy a diffusers folder and name it by "
            "HALFTONE_MODELS or `halftone serve --model`"
        ) from fault
    shutil.rmtree(folder / ".cache", ignore_errors=True)


def _check(folder: Path, repo: str) -> None:
    if not (folder / "model_index.json").is_file():
        raise HalftoneError(f"{repo} is no diffusers pipeline: it has no model_index.json")
    if not list(folder.glob("*/*.safetensors")):
        raise HalftoneError(f"{repo} has no weights in safetensors; pickled weights are not read")
