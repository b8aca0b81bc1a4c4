"""One call of a denoiser as data, and what runs it. Must not know jobs, queues, or any family of models."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from quant.guidance.plan import GuidancePlan
from quant.guidance.share import shared_call
from quant.precision import PreciseSteps
from quant.recipe_parts import FloatIn

UNCOND, COND, UNKNOWN = 0, 1, 2
"""Values of `DenoiserCall.branch`: which half of classifier-free guidance a row belongs to."""

TIMESTEP_NAMES = ("timestep", "timesteps", "t")


@dataclass(frozen=True)
class DenoiserCall:
    """What one run of a denoiser gets: B rows, which may belong to different jobs at different steps.

    Attributes:
        sample: [B, ...] latents, the denoiser's dtype.
        timestep: [B], or [B, L] where each token has its own; dtype as the scheduler gave it (int64 or float).
        step: [B] int64, index of the scheduler's step that each row is at, from 0.
        total_steps: [B] int64, how many steps that row's job takes in all.
        branch: [B] int64, UNCOND, COND or UNKNOWN.
        inputs: tensors with one entry per row (first dimension B), by dotted name: "encoder_hidden_states",
            "added_cond_kwargs.text_embeds".
        shared: tensors without a row dimension, equal for all rows: FLUX's "img_ids". One whose name ends with "[]" is
            a few tensors of one shape, stacked.
        constants: all arguments that are no tensors (None, numbers, lists), equal for all rows, by dotted name.
        pattern: which attention modules share between branches, an index into the denoiser's guidance plan's patterns.
            Above 0 there are as many rows of either branch, and the i-th conditional goes with the i-th unconditional.
    """

    sample: Tensor
    timestep: Tensor
    step: Tensor
    total_steps: Tensor
    branch: Tensor
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    shared: Mapping[str, Tensor] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    pattern: int = 0

    @property
    def rows(self) -> int:
        """B, the number of rows."""
        return self.sample.shape[0]

    def arguments(self) -> dict[str, Any]:
        """All keyword arguments but sample and timestep, nested again as the denoiser's forward takes them."""
        nested: dict[str, Any] = {}
        for name, value in (*self.inputs.items(), *self.shared.items(), *self.constants.items()):
            *parents, leaf = name.split(".")
            place = nested
            for parent in parents:
                place = place.setdefault(parent, {})
            place[leaf.removesuffix("[]")] = value.unbind(0) if leaf.endswith("[]") else value
        return nested


class Denoiser(Protocol):
    """What runs calls: the float module, or a quantized executable. One thread calls `run` at a time."""

    @property
    def name(self) -> str:
        """The profile's name: `float`, `w8a8`."""

    @property
    def backend(self) -> str:
        """What executes it: `torch`, `reference`, `openvino`."""

    @property
    def weights_bytes(self) -> int:
        """Bytes of memory that its weights take as it holds them."""

    @property
    def fallbacks(self) -> int:
        """Rows so far whose temporal features no table of the artifact knew; 0 where nothing is looked up."""

    @property
    def guidance(self) -> GuidancePlan | None:
        """What pipelines may leave out of classifier-free guidance with it; None where nothing was planned."""

    @property
    def precision(self) -> PreciseSteps | None:
        """Which steps run by more exact weights; None where all run by the same."""

    @property
    def decode_in(self) -> FloatIn:
        """What its pictures are decoded in on a CPU that has units for it."""

    def run(self, call: DenoiserCall) -> Tensor:
        """The denoiser's output [B, ...] for the call's rows, on the call's device, in memory of its own."""


def argument_names(kind: type[nn.Module]) -> tuple[str, str]:
    """(name of the sample argument, name of the timestep argument) of a denoiser class's forward.

    Raises:
        TypeError: its forward has no argument that looks like a timestep.
    """
    names = [name for name in inspect.signature(kind.forward).parameters if name != "self"]
    for known in TIMESTEP_NAMES:
        if known in names:
            return names[0], known
    expected = ", ".join(TIMESTEP_NAMES)
    raise TypeError(f"{kind.__name__}.forward takes none of {expected}: it is no denoiser that we know")


def call_module(module: nn.Module, call: DenoiserCall) -> Tensor:
    """Runs a torch denoiser on a call: [B, ...] in, [B, ...] out. The caller has grad mode off."""
    sample, timestep = argument_names(type(module))
    arguments = {sample: call.sample, timestep: call.timestep, **call.arguments(), "return_dict": False}
    output: Tensor = module(**arguments)[0]
    return output


def run_module(module: nn.Module, call: DenoiserCall, plan: GuidancePlan | None) -> Tensor:
    """As `call_module`; where the call has a pattern, with the attention shared that a plan says by it.

    Raises:
        BackendError: there is no such pattern, or the call's rows cannot share attention.
    """
    if not call.pattern:
        return call_module(module, call)
    from pipelines.library_call import library_calls  # which reads this file

    patterns, maps = ((), False) if plan is None else (plan.patterns, plan.maps)
    parts = library_calls(type(module), call)
    return torch.cat([shared_call(module, part, patterns, maps=maps) for part in parts])


class TorchDenoiser:
    """A torch module as it is: the profile `float`, or with a guidance plan. Convolutions work on channels-last memory.

    That is the same arithmetic in another order: on a UNet of 9 million parameters and 8x8 latents, one AVX512 core,
    2 rows took 23 ms instead of 46 and 16 rows 109 ms instead of 355.
    """

    backend = "torch"
    fallbacks = 0
    precision = None

    def __init__(
        self, name: str, module: nn.Module, guidance: GuidancePlan | None = None, decode_in: FloatIn = "float32"
    ) -> None:
        self.name = name
        self.guidance = guidance
        self.decode_in = decode_in
        self.module = channels_last(module.eval().requires_grad_(False))
        self.weights_bytes = module_bytes(module)

    def run(self, call: DenoiserCall) -> Tensor:
        """The module's output [B, ...] on the call.

        Raises:
            BackendError: its rows cannot share attention as its pattern says.
        """
        with torch.inference_mode():
            if call.sample.ndim == 4:
                call = replace(call, sample=call.sample.contiguous(memory_format=torch.channels_last))
            return run_module(self.module, call, self.guidance).contiguous()


def channels_last(module: nn.Module) -> nn.Module:
    """The module with its convolutions' weights in channels-last memory, in place; the numbers stay the same."""
    for parameter in module.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return module


def module_bytes(module: nn.Module) -> int:
    """Bytes of a module's parameters and buffers, each storage counted once."""
    tensors = [*module.parameters(), *module.buffers()]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
