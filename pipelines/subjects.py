"""What a model's pictures can be of, by its folder alone: prompts, classes by number or name, or nothing to choose.

Reads JSON, never weights. Must not know where the lines that it reads come from.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jobs.errors import InvalidRequest
from pipelines.families import Subject, UnsupportedModel, class_count, denoiser_part
from pipelines.load import class_of_pipeline, read_index

NAMES_SHOWN = 5
"""How many class names a message lists."""


@dataclass(frozen=True)
class Asks:
    """What a pipeline must be told before it makes a picture.

    Attributes:
        kind: a prompt's text, a class, or nothing.
        classes: how many classes there are; 0 where pictures are not of classes.
        labels: class numbers by name, as far as the model names them.
    """

    kind: Literal["prompt", "class", "nothing"]
    classes: int = 0
    labels: Mapping[str, int] = field(default_factory=dict)

    def read(self, lines: Sequence[str]) -> list[Subject]:
        """The subjects that lines of text name, one a line.

        Raises:
            InvalidRequest: the model takes none, or a line names no class.
        """
        if self.kind == "nothing":
            message = "this model makes pictures without prompts; leave --prompts out and say how many by --samples"
            raise InvalidRequest(message, param="prompts")
        return list(lines) if self.kind == "prompt" else [self._number(line) for line in lines]

    def spread(self, count: int) -> list[Subject]:
        """`count` subjects of which nobody said anything: nothing, or classes in order, evenly spread over all.

        Raises:
            InvalidRequest: the model needs prompts.
        """
        if self.kind == "prompt":
            raise InvalidRequest(
                "this model has no prompts of its own; give a file of them by --prompts", param="prompts"
            )
        if self.kind == "nothing":
            return [None] * count
        return [number * self.classes // count for number in range(count)]

    def _number(self, line: str) -> int:
        number = int(line) if line.isascii() and line.isdigit() else self.labels.get(line, -1)
        if not 0 <= number < self.classes:
            names = ", ".join([*self.labels][:NAMES_SHOWN])
            known = f", or a name such as {names}" if names else "; it has no names for them"
            expected = f"this model knows classes 0 to {self.classes - 1}{known}"
            raise InvalidRequest(f"{line!r} is no class: {expected}", param="prompts")
        return number


def asks_of(folder: Path) -> Asks:
    """What the pipeline in a diffusers folder must be told.

    Raises:
        UnsupportedModel: the folder holds no pipeline that we know, or one that must be told something else.
    """
    index = read_index(folder)
    kind = class_of_pipeline(index)
    known = inspect.signature(kind.__call__).parameters
    if "prompt" in known:
        return Asks("prompt")
    classes = class_count(_config(folder / denoiser_part(index)))
    if "class_labels" in known and classes:
        return Asks("class", classes, _labels(index))
    if "batch_size" not in known:
        raise UnsupportedModel(
            f"{kind.__name__} makes pictures of neither prompts, classes nor nothing: it is not known"
        )
    return Asks("nothing")


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnsupportedModel(f"{folder} has no readable config.json: {error}") from error
    if not isinstance(config, dict):
        raise UnsupportedModel(f"{folder}/config.json holds no object")
    return config


def _labels(index: Mapping[str, Any]) -> dict[str, int]:
    """Class numbers by name as `DiTPipeline` reads them: an entry may list several names, comma between."""
    names = index.get("id2label")
    if not isinstance(names, dict):
        return {}
    return {name.strip(): int(number) for number, line in names.items() for name in str(line).split(",")}
