"""What a comparison judges pictures by beside numbers: the model's checker, LPIPS and CLIP, where they are at hand.

Each is opened when first asked for; what is not there is told by its reason, never made up. Imports torch only then.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from jobs.errors import BadSettings
from jobs.model_folder import read_model

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
Missing = dict[str, str]
"""What was not measured, and why."""


class Judges:
    """Opens each judge once. All methods may be called on any thread."""

    def __init__(self, lpips_dir: Path | None = None, clip_dir: Path | None = None) -> None:
        self._lpips_dir = lpips_dir
        self._clip_dir = clip_dir
        self._lock = threading.Lock()
        self._opened: dict[Path, object] = {}

    def lpips(self, missing: Missing) -> Callable[[Tensor, Tensor], float] | None:
        """LPIPS of two pictures [3, H, W] in 0..1; None where its weights are not configured.

        Raises:
            BadSettings: the folder named does not hold them.
        """
        if self._lpips_dir is None:
            missing["lpips"] = "no weights are configured: HALFTONE_LPIPS_DIR names their folder"
            return None
        from pipelines.perceptual import Lpips

        return self._open(self._lpips_dir, Lpips).distance

    def clip(self, missing: Missing) -> Callable[[str, Tensor], float] | None:
        """CLIP score of a prompt and a picture [3, H, W] in 0..1; None where its weights are not configured.

        Raises:
            BadSettings: the folder named does not hold them.
        """
        if self._clip_dir is None:
            missing["clip_score"] = "no weights are configured: HALFTONE_CLIP_DIR names their folder"
            return None
        from pipelines.perceptual import ClipScore

        return self._open(self._clip_dir, ClipScore).score

    def checker(self, folder: Path, missing: Missing) -> Callable[[str, Tensor], bool | None] | None:
        """Whether a picture [3, H, W] or video [F, 3, H, W] shows its prompt, by the checker that the model names."""
        from pipelines.checkers import NoChecker, checker_named, frames_of

        name = read_model(folder).checker
        if name is None:
            missing["prompt_accuracy"] = "the model's halftone.json names no checker"
            return None
        try:
            checker = checker_named(name)
        except NoChecker as fault:
            missing["prompt_accuracy"] = str(fault)
            return None
        return lambda prompt, picture: checker(prompt, frames_of(picture))

    def _open(self, folder: Path, kind: Callable[[Path], T]) -> T:
        with self._lock:
            if folder not in self._opened:
                try:
                    self._opened[folder] = kind(folder)
                except (OSError, ValueError, KeyError) as fault:
                    raise BadSettings(f"{folder} does not hold the weights that it is named for: {fault}") from fault
            opened: T = self._opened[folder]  # type: ignore[assignment]  # a folder is opened as one kind
            return opened
