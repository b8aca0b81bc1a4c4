"""How to quantize, as data: bits, range searches, ordered rules over layer names. Must not know any model by name."""

from __future__ import annotations

import tomllib
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from quant.errors import RecipeError

FORMAT: Final = 1
"""Version of the recipe file's shape."""

_STRICT = ConfigDict(extra="forbid", frozen=True)
Bits = Annotated[int, Field(ge=2, le=8)]


class Weights(BaseModel):
    """Per-output-channel symmetric integers."""

    model_config = _STRICT

    bits: Bits = 8
    range: Literal["max", "mse"] = "mse"


class Activations(BaseModel):
    """Per-tensor unsigned integers with a zero point, the same at every step."""

    model_config = _STRICT

    bits: Bits = 8
    range: Literal["minmax", "mse", "percentile"] = "mse"
    power: float = Field(2.0, gt=0, le=8, description="Of the error that `mse` minimizes.")
    percentile: float = Field(99.99, gt=50, le=100)


class Rule(BaseModel):
    """What holds for the layers whose dotted name matches one of some shell patterns (`*` also spans dots)."""

    model_config = _STRICT

    match: tuple[str, ...] = Field(min_length=1)
    keep: Literal["float"] | None = None
    because: str = Field("", description="Why, where the layer is kept.")


class Sensitive(BaseModel):
    """Room for more float layers, beyond the rules: those whose rounding moves the model's output most, as measured."""

    model_config = _STRICT

    macs: float = Field(0.0, ge=0, le=1, description="Share of multiply-adds that these layers may have in all.")
    bytes: float = Field(0.0, ge=0, le=1, description="Share of the float weights' bytes that they may have in all.")
    least: float = Field(0.01, ge=0, le=1, description="A layer with less of the squared error left is no matter.")


class Scheme(BaseModel):
    """How one layer is quantized."""

    model_config = _STRICT

    weights: Weights
    activations: Activations

    @property
    def text(self) -> str:
        """One line for people and for manifests."""
        return f"s{self.weights.bits} per channel, u{self.activations.bits} per tensor"


class Decision(NamedTuple):
    """A scheme, or the reason why a layer stays float; exactly one is set."""

    scheme: Scheme | None
    because: str


class Recipe(BaseModel):
    """A whole recipe. The first rule that matches a layer's name decides; a layer that none matches is quantized."""

    model_config = _STRICT

    format: Literal[1] = FORMAT
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    description: str = ""
    weights: Weights = Weights()
    activations: Activations = Activations()
    sensitive: Sensitive = Sensitive()
    rules: tuple[Rule, ...] = ()

    def decide(self, layer: str) -> Decision:
        """What the rules say of a layer's dotted name."""
        for rule in self.rules:
            if any(fnmatchcase(layer, pattern) for pattern in rule.match):
                if rule.keep == "float":
                    return Decision(None, rule.because or f"rule {', '.join(rule.match)}")
                break
        return Decision(Scheme(weights=self.weights, activations=self.activations), "")


def parse(text: str, source: str) -> Recipe:
    """A recipe from TOML text; `source` names it in messages.

    Raises:
        RecipeError: the text is no TOML, or a field is unknown, missing, or out of bounds.
    """
    try:
        return Recipe.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{source} is no TOML: {error}") from error
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise RecipeError(f"{source} is no recipe: {faults}") from error


def builtin_recipes() -> tuple[str, ...]:
    """Names of the recipes that come with the library, sorted."""
    folder = resources.files("quant") / "recipes"
    return tuple(sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".toml")))


def load_recipe(name_or_path: str | Path) -> Recipe:
    """A built-in recipe by its name, or one from a file that ends in .toml.

    Raises:
        RecipeError: there is no such recipe, or the file is none.
    """
    if str(name_or_path).endswith(".toml"):
        path = Path(name_or_path)
        if not path.is_file():
            raise RecipeError(f"no recipe file at {path}")
        try:
            return parse(path.read_text(encoding="utf-8"), str(path))
        except UnicodeDecodeError as error:
            raise RecipeError(f"{path} is no text in UTF-8: {error}") from error
    if name_or_path not in builtin_recipes():
        raise RecipeError(f"no recipe {str(name_or_path)!r}; known: {', '.join(builtin_recipes())}, or a .toml file")
    text = (resources.files("quant") / "recipes" / f"{name_or_path}.toml").read_text(encoding="utf-8")
    return parse(text, f"recipe {name_or_path}")
