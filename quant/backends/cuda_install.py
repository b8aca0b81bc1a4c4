"""Puts kernels in the place of a module's quantized layers, and says which have none. Must not know calls.

A block-Hadamard rotation that stands before a linear is computed on the way into its rounding; other transforms are
computed by torch, once for all layers that are fed the same tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from quant.backends.cuda_layers import (
    READ_BY_MODELS,
    FloatArithmetic,
    KernelConv,
    KernelLayer,
    KernelLinear,
    Once,
    SharedTransform,
)
from quant.backends.cuda_waiting import Normed, Switch, computed
from quant.kernels.forms import Before, Norm
from quant.kernels.product import MOST_SUMMED
from quant.kernels.quantize import MOST_NUMBERS, MOST_ROTATED
from quant.layers import QuantizedConv2d, QuantizedLayer, QuantizedLinear, replace_layers
from quant.published import PublishedLayer
from quant.rotation.attach import transformed_layers
from quant.rotation.transform import INNER, InputTransform, Transformed
from quant.temporal.layers import FeatureLookup


class Installed(NamedTuple):
    """What runs the quantized layers of a module.

    Attributes:
        kernels: dotted name to kernel.
        float_layers: dotted name to the reason why no kernel runs it.
    """

    kernels: Mapping[str, str]
    float_layers: Mapping[str, str]


def install(module: nn.Module, once: Once, dtype: torch.dtype, waits: Switch) -> Installed:
    """Replaces, in place, quantized layers by layers that run kernels; what else is float becomes `dtype`.

    The module's tensors are on the device that is to run it. Layers without a kernel stay, in float32. While `waits` is
    on, norms and linears answer with values that kernels take in (`quant.backends.cuda_waiting`).
    """
    left = reasons(module)
    made: dict[str, nn.Module] = {}
    for name, layer in _own_layers(module).items():
        if name not in left and isinstance(layer, QuantizedLinear | QuantizedConv2d):
            made[name] = _kernel_layer(layer, once, dtype, waits)
    for name, behind in transformed_layers(module).items():
        inner = f"{name}.{INNER}"
        if inner in made and isinstance(behind.inner, QuantizedLinear) and fuses(behind.transform, behind.inner):
            del made[inner]
            made[name] = _fused(behind, behind.inner, once, dtype, waits)
    _share_transforms(module, once)
    kernels = {name: layer.kernel for name, layer in made.items() if isinstance(layer, KernelLinear | KernelConv)}
    if dtype is not torch.float32:
        modules = dict(module.named_modules())
        made |= {name: FloatArithmetic(modules[name], dtype) for name in left}
    replace_layers(module, made)
    cast_(module, dtype)
    for part in module.modules():
        _have_wait(part, waits)
    return Installed(kernels, left)


def reasons(module: nn.Module) -> dict[str, str]:
    """Dotted name of each quantized layer that no kernel runs to the reason."""
    found = {}
    for name, layer in _own_layers(module).items():
        reason = _reason(layer)
        if reason:
            found[name] = reason
    return found


def _own_layers(module: nn.Module) -> dict[str, nn.Module]:
    """Layers with integers, but of a published layer not its parts."""
    whole = {name: part for name, part in module.named_modules() if isinstance(part, PublishedLayer)}
    plain = {
        name: part
        for name, part in module.named_modules()
        if isinstance(part, QuantizedLayer) and not any(name.startswith(f"{above}.") for above in whole)
    }
    return {**whole, **plain}


def _reason(layer: nn.Module) -> str:
    """Why no kernel runs a layer; nothing if one does."""
    if isinstance(layer, PublishedLayer):
        return "its weights are others in each range of time"
    if type(layer) is not QuantizedLinear and type(layer) is not QuantizedConv2d:
        return f"kernels know linears and convolutions, not {type(layer).__name__}"
    if layer.zero_points is not None:
        return "its output channels have zero points"
    if layer.by_token and layer.input_zero_point is None:
        return "each token has a zero point of its own"
    depth = layer.integers[:1].numel()
    if depth > MOST_SUMMED:
        return f"it sums {depth} products, and int32 holds {MOST_SUMMED}"
    if layer.rounds_input and layer.integers.shape[1] > MOST_NUMBERS:
        return f"rows of {layer.integers.shape[1]} numbers are not rounded at once: {MOST_NUMBERS} at most"
    return _reason_of_conv(layer) if isinstance(layer, QuantizedConv2d) else ""


def _reason_of_conv(layer: QuantizedConv2d) -> str:
    if layer.groups != 1:
        return f"its channels go in {layer.groups} groups"
    if not layer.rounds_input:
        return "it is a convolution of inputs that stay float"
    return f"its padding is {layer.padding!r}" if isinstance(layer.padding, str) else ""


def _kernel_layer(
    layer: QuantizedLinear | QuantizedConv2d, once: Once, dtype: torch.dtype, waits: Switch
) -> KernelLayer:
    if isinstance(layer, QuantizedLinear):
        return KernelLinear(layer, once, dtype, waits)
    return KernelConv(layer, once, dtype)


def fuses(transform: InputTransform, inner: QuantizedLinear) -> bool:
    """Whether a transform is computed on the way into the rounding of a linear's input."""
    plain = transform.first is None and transform.second is None and transform.permutation is None
    block = 0 if transform.signs is None else transform.signs.numel()
    return inner.rounds_input and transform.axis == -1 and plain and (block == 0 or 2 <= block <= MOST_ROTATED)


def _fused(behind: Transformed, inner: QuantizedLinear, once: Once, dtype: torch.dtype, waits: Switch) -> KernelLinear:
    made = KernelLinear(inner, once, dtype, waits, behind.transform)
    for name in READ_BY_MODELS:
        if hasattr(behind, name):
            setattr(made, name, getattr(behind, name))
    return made


def _norm_of(module: nn.Module) -> Norm:
    """What a module's norm is, over the last dimension; "none" if it is none. diffusers has an RMSNorm of its own."""
    if isinstance(module, nn.LayerNorm):
        return "layer" if len(module.normalized_shape) == 1 else "none"
    return "rms" if type(module).__name__ == "RMSNorm" else "none"


def _have_wait(module: nn.Module, waits: Switch) -> None:
    """Has a norm answer [B, T, K] with values that wait, where it keeps dtypes as they are."""
    norm, plainly = _norm_of(module), module.forward
    eps = None if norm == "none" else getattr(module, "eps", None)
    if not isinstance(eps, float):
        return

    def forward(x: Tensor) -> Tensor:
        rows: Tensor = computed(x)
        weight, bias = (getattr(module, name, None) for name in ("weight", "bias"))
        changes = weight is not None and weight.dtype != rows.dtype and not isinstance(module, nn.LayerNorm)
        if not waits.closed or rows.ndim != 3 or rows.shape[-1] > MOST_NUMBERS or changes:
            answer: Tensor = plainly(rows)
            return answer
        return Normed.of(rows, Before(norm, eps, weight, bias), lambda: plainly(rows))

    module.__dict__["forward"] = forward


def _share_transforms(module: nn.Module, once: Once) -> None:
    """Has layers that are fed the same tensor compute their transform once."""
    shared: dict[int, SharedTransform] = {}
    for behind in transformed_layers(module).values():
        own = shared.setdefault(id(behind.transform), SharedTransform(behind.transform, once))
        if behind.leads:
            behind._modules["transform"] = own
        else:
            behind.__dict__["transform"] = own


def cast_(module: nn.Module, dtype: torch.dtype) -> None:
    """Turns a module's float tensors to `dtype`, in place, but for those of quantized layers, transforms and tables."""
    kept = set[int]()
    for part in module.modules():
        if isinstance(part, KernelLayer | FloatArithmetic | InputTransform):
            kept |= {id(own) for own in part.modules()}
    for part in module.modules():
        if id(part) in kept:
            continue
        for name, parameter in part.named_parameters(recurse=False):
            if parameter.is_floating_point():
                setattr(part, name, nn.Parameter(parameter.to(dtype), requires_grad=False))
        if not isinstance(part, FeatureLookup):
            for name, buffer in part.named_buffers(recurse=False):
                if buffer.is_floating_point():
                    setattr(part, name, buffer.to(dtype))
