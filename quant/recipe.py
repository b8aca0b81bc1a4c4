"""How to quantize, as data: bits, range searches, ordered rules over layer names. Must not know any model by name."""

from __future__ import annotations

import tomllib
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from quant.errors import RecipeError
from quant.recipe_checks import contradictions
from quant.recipe_parts import FloatIn, Guidance, Precision, Ranges, Rotation, Rounding, Smoothing, Upsampling

FORMAT: Final = 1
"""Version of the recipe file's shape."""

_STRICT = ConfigDict(extra="forbid", frozen=True)
Bits = Annotated[int, Field(ge=2, le=8)]
FLOAT_BITS: Final = 32
"""As a number of activation bits: not quantized."""

Storage = Literal["float32", "bfloat16", "int8", "int4"]
"""How cached temporal features are stored; integers have a scale and an offset for each step and chunk."""


def _with_plain_range(value: object, field: str, choice: str, plain: str) -> object:
    """What was told, with range `plain` where `field` is `choice` and no range is told: there is no other then."""
    if isinstance(value, dict) and value.get(field) == choice and "range" not in value:
        return {**value, "range": plain}
    return value


class Weights(BaseModel):
    """Integers with a scale for each output channel, symmetric unless `zero_point` says otherwise."""

    model_config = _STRICT

    bits: Bits = 8
    range: Literal["max", "mse"] = "mse"
    zero_point: Literal["none", "channel"] = Field(
        "none", description="`channel`: asymmetric, from least to greatest weight; only with `ranges` each."
    )
    ranges: Literal["shared", "each"] = Field(
        "shared", description="`each`: rounded anew for each range of time, as TR-DQ publishes; reference backend only."
    )

    @model_validator(mode="before")
    @classmethod
    def _channel_is_max(cls, value: Any) -> Any:
        return _with_plain_range(value, "zero_point", "channel", "max")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.zero_point == "channel" and (self.ranges, self.range) != ("each", "max"):
            raise ValueError('zero points of channels go with ranges "each" and range "max" only, as published')
        return self


class Activations(BaseModel):
    """Unsigned integers with a zero point. `steps` and `branches`: what has a scale of its own.

    `grain` token: each token (each picture, where a convolution reads it) gets the scale that its own numbers need, as
    they come; the zero point of all is calibrated. `range` is "minmax" then.
    """

    model_config = _STRICT

    bits: Bits | Literal[32] = 8
    range: Literal["minmax", "mse", "percentile"] = "mse"
    power: float = Field(2.0, gt=0, le=8, description="Of the error that `mse` minimizes.")
    percentile: float = Field(99.99, gt=50, le=100)
    steps: Literal["shared", "ranges", "each"] = "shared"
    branches: Literal["shared", "each"] = "shared"
    least_gain: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of a layer's squared error, as predicted, that scales which follow time must take away; a "
        "layer where they do not gets one scale, which kernels run faster.",
    )
    grain: Literal["tensor", "token"] = Field("tensor", description="`token`: a scale for each token, as it comes.")
    zero_point: Literal["shared", "token"] = Field(
        "shared", description="`token`: each token's own, with that grain; reference backend only."
    )

    @model_validator(mode="before")
    @classmethod
    def _token_is_minmax(cls, value: Any) -> Any:
        return _with_plain_range(value, "grain", "token", "minmax")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        by_token = self.grain == "token"
        if self.zero_point == "token" and not by_token:
            raise ValueError('zero_point "token" needs grain "token"')
        if by_token and (self.steps, self.branches, self.range) != ("shared", "shared", "minmax"):
            raise ValueError('with grain "token" each token has its own scale: steps and branches are to be "shared"')
        if self.least_gain and not self.follows_time:
            raise ValueError("least_gain is about scales that follow time: steps or branches must not be shared")
        if by_token and self.bits == FLOAT_BITS:
            raise ValueError('inputs that stay float (bits 32) have no grain "token"')
        return self

    @property
    def follows_time(self) -> bool:
        """Whether scales are asked for that depend on step or branch."""
        return self.bits != FLOAT_BITS and (self.steps, self.branches) != ("shared", "shared")


class Temporal(BaseModel):
    """What becomes of the layers that turn a timestep into features (TFMQ-DM; methods of "Temporal Feature Matters").

    `maintenance`: `none` treats them as all other layers; `float` leaves them; `tib` quantizes and reconstructs them
    together (TIAR) with a grid for each step (FSC); `cache` stores their outputs and drops them; `select` takes
    the better of the two for each module, step and chunk (DAS), under `budget_bytes` where given.
    """

    model_config = _STRICT

    maintenance: Literal["none", "float", "tib", "cache", "select"] = "none"
    bits: Bits = Field(8, description="Of these layers' weights where they are kept, or kept for unknown timesteps.")
    activation_bits: Bits | Literal[32] = 8
    rounding: Literal["nearest", "adaround", "closed"] = "closed"
    iterations: int = Field(2000, ge=1, le=100_000, description="Of `adaround`.")
    steps: Literal["shared", "each"] = Field(
        "each", description="Whether their inputs have a grid for each step (FSC)."
    )
    storage: Storage = "float32"
    budget_bytes: int | None = Field(None, ge=0)


class Rule(BaseModel):
    """What holds for the layers whose dotted name matches one of some shell patterns (`*` also spans dots)."""

    model_config = _STRICT

    match: tuple[str, ...] = Field(min_length=1)
    keep: Literal["float"] | None = None
    weights: Weights | None = Field(None, description="Instead of the recipe's.")
    activations: Activations | None = Field(None, description="Instead of the recipe's.")
    because: str = Field("", description="Why, where the layer is kept.")


class Sensitive(BaseModel):
    """Room for more exact layers, beyond the rules: those whose rounding moves the model's output most, as measured."""

    model_config = _STRICT

    weights: Weights | None = Field(None, description="How their weights are quantized; without, they stay float.")

    macs: float = Field(0.0, ge=0, le=1, description="Share of multiply-adds that these layers may have in all.")
    bytes: float = Field(0.0, ge=0, le=1, description="Share of the float weights' bytes that they may have in all.")
    least: float = Field(0.01, ge=0, le=1, description="A layer with less of the squared error left is no matter.")


class Scheme(BaseModel):
    """How one layer is quantized."""

    model_config = _STRICT

    weights: Weights
    activations: Activations


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
    rounding: Rounding = Rounding()
    temporal: Temporal = Temporal()
    split_skips: bool = Field(False, description="Own scales for each part of concatenated inputs (Q-Diffusion).")
    scope: Literal["all", "temporal", "none"] = Field(
        "all", description="`temporal` leaves all other layers float: an ablation. `none` leaves all: guidance alone."
    )
    float_in: FloatIn = Field(
        "float32",
        description="What is not integer (attention, norms, layers that stay float) is computed in, on machines that "
        "have units for it and where no timestep is embedded on the way; elsewhere in float32.",
    )
    decode_in: FloatIn = Field(
        "float32",
        repr=False,  # stages are keyed by what shows; it changes none, nor do other such fields
        description="The autoencoder decodes latents in, on CPUs that have units for it; elsewhere as it is loaded.",
    )
    upsampling: Upsampling = Field("direct", repr=False, description="How doubled pictures are convolved.")
    rotation: Rotation = Rotation()
    smoothing: Smoothing = Smoothing()
    ranges: Ranges = Ranges()
    guidance: Guidance = Guidance()
    precision: Precision = Field(Precision(), repr=False)
    sensitive: Sensitive = Sensitive()
    rules: tuple[Rule, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if faults := list(contradictions(self)):
            raise ValueError("; ".join(faults))
        return self

    @property
    def schemes(self) -> tuple[Scheme, ...]:
        """All that a layer may get: the recipe's own, the rules', and with the weights of sensitive layers."""
        own = [Scheme(weights=self.weights, activations=self.activations)]
        own += [self._scheme(rule) for rule in self.rules if rule.keep is None]
        finer = self.sensitive.weights
        return (*own, *(one.model_copy(update={"weights": finer}) for one in own if finer is not None))

    @property
    def learns(self) -> bool:
        """Whether rounding is learned on rows of calls."""
        return self.rounding.method == "adaround"

    @property
    def backend(self) -> Literal["openvino", "reference", "torch"]:
        """What runs the artifact by default: `reference` where kernels cannot, `torch` where nothing is quantized."""
        if self.scope == "none":
            return "torch"
        slow = any(one.weights.ranges == "each" or one.activations.zero_point == "token" for one in self.schemes)
        return "reference" if slow else "openvino"

    def fast(self) -> Recipe:
        """The recipe without iterations: weights rounded to nearest, temporal layers in closed form, no learning of
        rotations.
        """
        temporal, rotation = self.temporal, self.rotation
        if temporal.rounding == "adaround":
            temporal = temporal.model_copy(update={"rounding": "closed"})
        if rotation.method == "learned":
            rotation = rotation.model_copy(update={"method": "hadamard"})
        return self.model_copy(update={"rounding": Rounding(), "temporal": temporal, "rotation": rotation})

    def _scheme(self, rule: Rule) -> Scheme:
        return Scheme(weights=rule.weights or self.weights, activations=rule.activations or self.activations)

    def decide(self, layer: str) -> Decision:
        """What the rules say of a layer's dotted name."""
        for rule in self.rules:
            if any(fnmatchcase(layer, pattern) for pattern in rule.match):
                if rule.keep == "float":
                    return Decision(None, rule.because or f"rule {', '.join(rule.match)}")
                return Decision(self._scheme(rule), "")
        return Decision(self.schemes[0], "")


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
