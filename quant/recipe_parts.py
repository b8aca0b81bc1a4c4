"""Parts of a recipe: rounding, rotation, ranges of time, guidance plans, precise steps. Must not know any model."""

from __future__ import annotations

from typing import Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

STRICT = ConfigDict(extra="forbid", frozen=True)

SPAN: Final = 1000
"""Timesteps that ranges divide: 0 to SPAN, as models are trained on."""


FloatIn = Literal["float32", "bfloat16"]
"""Number formats that float operations may be computed in; weights are stored as they are either way."""

Upsampling = Literal["direct", "polyphase"]
"""How a convolution of a picture that nearest neighbours doubled is computed: as it is told, or at the size before, as
four of 2x2, whose weights are sums of the nine (16 products in place of 36). Sums of 8-bit weights are rounded again.
"""


class Rounding(BaseModel):
    """How weights are rounded to integers: to the nearest, or by AdaRound (Nagel et al., ICML 2020) of blocks.

    Published numbers (TFMQ-DM's code): 20,000 iterations of batch 32, Adam 1e-3, regularizer 0.01, warm-up 0.2, beta 20
    to 2.
    """

    model_config = STRICT

    method: Literal["nearest", "adaround"] = "nearest"
    grain: Literal["layer", "block"] = "block"
    iterations: int = Field(500, ge=1, le=100_000, description="Of every block or layer.")
    batch: int = Field(32, ge=1, le=1024, description="Rows of an iteration.")
    samples: int = Field(512, ge=1, le=100_000, description="Rows of denoiser calls to reconstruct on.")
    timesteps: Literal["uniform", "normal"] = Field(
        "uniform", description="How rows are drawn over steps; `normal`: skewed to one side, as PTQ4DM (CVPR 2023)."
    )
    learning_rate: float = Field(1e-3, gt=0, le=1)
    regularizer: float = Field(0.01, gt=0, le=10)
    warmup: float = Field(0.2, ge=0, lt=1)
    beta: tuple[float, float] = (20.0, 2.0)
    activation_iterations: int = Field(
        0, ge=0, le=100_000, description="Of every block, to learn activation scales afterwards (Q-Diffusion)."
    )


class Rotation(BaseModel):
    """Orthogonal matrices on the input channels of layers, taken back in their weights, so that outliers spread out.

    `hadamard`: blocks of a Hadamard matrix with random signs (QuaRot; ViDiT-Q). `greedy`: blocks of rotations that
    spread the largest channels, a zigzag permutation, and the same again (DuQuant; TR-DQ). `learned`: one orthogonal
    block trained on calibrated inputs (SpinQuant).
    """

    model_config = STRICT

    method: Literal["none", "hadamard", "greedy", "learned"] = "none"
    block: int = Field(128, description="Largest block; a layer takes the largest power of two that divides its width.")
    fold: bool = Field(True, description="Into neighbours' weights where the algebra allows; else always computed.")
    online: Literal["all", "helpful", "none"] = Field(
        "all",
        description="Which layers compute a rotation that cannot be folded; `helpful`: by `least_gain`, and folded "
        "ones that would add error are left out too; factors that blocks can only fold together, likewise.",
    )
    least_gain: float = Field(0.2, ge=0, lt=1, description="Share of a layer's squared error that must go.")
    match: tuple[str, ...] = Field(("*",), min_length=1, description="Shell patterns of layers' names.")
    iterations: int = Field(100, ge=1, le=100_000, description="Of `learned`.")

    @model_validator(mode="after")
    def _has_hadamard(self) -> Self:
        if self.block < 2 or self.block > 4096 or self.block & (self.block - 1):
            raise ValueError(
                f"no Hadamard matrix of size {self.block} is built: block must be a power of two, 2 to 4096"
            )
        return self


class Smoothing(BaseModel):
    """Channel factors that move the range of inputs into weights (SmoothQuant): max|X|^a / max|W|^(1-a).

    `fixed`: by `exponent`, or by `exponents`, one for each range. `search`: the exponent of the least calibrated error,
    for each layer (and range, where weights are rounded for each).
    """

    model_config = STRICT

    method: Literal["none", "fixed", "search"] = "none"
    exponent: float = Field(0.5, ge=0, le=1)
    exponents: tuple[float, ...] = Field((), description="Of each range, where weights are rounded for each.")
    momentum: float = Field(0.95, ge=0, lt=1, description="Of the running mean of channels' maxima over steps.")


class Ranges(BaseModel):
    """Parts of the timesteps 0..1000 in which what depends on time is the same.

    `uniform`: `count` parts of equal length (TR-DQ: 20, ViDiT-Q: 2). `dp`: the fewest parts, at most `count`, whose
    calibrated error is within `tolerance` of that of a part for each step, by dynamic programming. `given`: `bounds`.
    """

    model_config = STRICT

    method: Literal["uniform", "dp", "given"] = "uniform"
    count: int = Field(20, ge=1, le=SPAN)
    tolerance: float = Field(0.05, ge=0, le=10)
    bounds: tuple[tuple[int, int], ...] = Field((), description="First and last timestep of each, both inside.")

    @model_validator(mode="after")
    def _without_holes(self) -> Self:
        if (self.method == "given") != bool(self.bounds):
            raise ValueError('bounds are to be given with method "given", and only then')
        expected = 0
        for first, last in sorted(self.bounds):
            if first != expected or last < first:
                fault = "overlaps the one before" if first < expected else f"leaves a hole from {expected}"
                raise ValueError(f"range [{first}, {last}] {fault}: ranges must cover 0 to {SPAN} once each")
            expected = last + 1
        if self.bounds and expected != SPAN + 1:
            raise ValueError(f"ranges end at {expected - 1}: they must cover 0 to {SPAN} once each")
        return self


class Guidance(BaseModel):
    """What may be left out of classifier-free guidance, by calibrated error.

    `plan`: chosen for each step and layer under `budget`: reuse of the last difference between branches instead of an
    unconditional pass, no guidance where it changes nothing, attention outputs shared between branches. `given`:
    `steps`, a letter for each: B both branches, R reuse, N no guidance. `maps`: attention maps of `blocks` shared at
    all steps (TR-DQ's attention sharing, for comparison).
    """

    model_config = STRICT

    method: Literal["none", "plan", "given", "maps"] = "none"
    budget: float = Field(0.02, gt=0, le=1, description="Relative error of the final latents that the plan may cause.")
    share_attention: bool = True
    scale_range: tuple[float, float] = Field(
        (0.5, 1.25), description="Guidance scales that the plan serves, as factors of the calibrated one."
    )
    steps: str = Field("", pattern="^[BRN]*$")
    blocks: tuple[str, ...] = Field((), description="Shell patterns of attention modules, for `maps`.")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.method == "given") != bool(self.steps):
            raise ValueError('steps are to be given with method "given", and only then')
        if (self.method == "maps") != bool(self.blocks):
            raise ValueError('blocks are to be given with method "maps", and only then')
        if self.steps and self.steps[0] == "R":
            raise ValueError("the first step has no difference to reuse: steps must begin with B or N")
        if not 0 < self.scale_range[0] <= 1 <= self.scale_range[1]:
            raise ValueError("scale_range must contain 1")
        return self


class Precision(BaseModel):
    """Steps that a more exact copy of the weights computes: the first, which lay a picture out, and the last.

    `form`: `float`, the model itself; `w8a8`: 8 bits where the recipe has fewer, to nearest, all else as it says.
    Both branches of guidance run by the same copy. Counted in steps of the schedule that is calibrated at; schedules of
    other lengths have at least the same share of them. The copy's bytes count as the profile's own.
    """

    model_config = STRICT

    form: Literal["none", "float", "w8a8"] = "none"
    first_steps: int = Field(0, ge=0, le=SPAN)
    last_steps: int = Field(0, ge=0, le=SPAN)

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if (self.form == "none") != (self.first_steps + self.last_steps == 0):
            raise ValueError('first_steps or last_steps are to be given with a form "float" or "w8a8", and only then')
        return self
