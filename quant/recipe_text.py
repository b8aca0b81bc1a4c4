"""A recipe as the text of its file, which `quant.recipe.parse` reads back. Must not know any model by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from quant.recipe import Recipe


def text_of(recipe: Recipe) -> str:
    """TOML: what differs from the defaults, a rule in each table of its own."""
    told = recipe.model_dump(mode="json", exclude_defaults=True, exclude={"rules"})
    told = {"format": recipe.format} | {name: value for name, value in told.items() if value not in ({}, None)}
    plain = {name: value for name, value in told.items() if not isinstance(value, Mapping)}
    tables = {name: value for name, value in told.items() if isinstance(value, Mapping)}
    parts = ["\n".join(_lines(plain))]
    parts += [f"[{name}]\n" + "\n".join(_lines(value)) for name, value in tables.items()]
    parts += [
        "[[rules]]\n" + "\n".join(_lines(rule.model_dump(mode="json", exclude_defaults=True))) for rule in recipe.rules
    ]
    return "\n\n".join(parts) + "\n"


def _lines(table: Mapping[str, Any]) -> list[str]:
    return [f"{name} = {_value(value)}" for name, value in table.items() if value is not None]


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(_lines(value)) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value, ensure_ascii=False)  # strings, numbers and booleans look the same in TOML
