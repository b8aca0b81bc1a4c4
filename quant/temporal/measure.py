"""What a module's temporal layers put out at each step, float or quantized, looked up or not. Must not judge it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from quant.backends.call import Call
from quant.backends.moment import run_timed, timed
from quant.temporal.features import FeatureSource


def features_of(
    module: nn.Module, names: Sequence[str], calls: Sequence[Call], source: FeatureSource | None = None
) -> Mapping[str, Tensor]:
    """Name of each module named to its outputs, [calls, width] float32: calls of one row, one for each step.

    `source` gives the moment of each call where layers read it.

    Raises:
        KeyError: the module has no part of such a name.
    """
    outputs: dict[str, list[Tensor]] = {name: [] for name in names}
    handles = [module.get_submodule(name).register_forward_hook(_keeping(outputs[name])) for name in names]
    try:
        with torch.inference_mode():
            for call in calls:
                now = call if source is None else timed(call, source.moment(call))
                run_timed(module, now.tensors(), now.constants)
    finally:
        for handle in handles:
            handle.remove()
    return {name: torch.stack(kept).clone() for name, kept in outputs.items()}


def _keeping(kept: list[Tensor]) -> Callable[..., None]:
    def keep(module: nn.Module, arguments: object, output: Tensor) -> None:
        kept.append(output.detach().float().flatten())

    return keep
