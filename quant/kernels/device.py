"""The one door to Triton: where kernels can run, how they are made and launched. Must not know what they compute.

Triton's interpreter (TRITON_INTERPRET=1 in the environment before Triton is first imported) runs the same kernels
on CPU tensors, slowly: that is how machines without a GPU check them. Within kernels, pointers and blocks of numbers
are both called tl.tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from quant.errors import BackendError


def jit(*, unspecialized: Sequence[str] = ()) -> Callable[[Callable[..., Any]], Any]:
    """Makes a Triton kernel of a function; `unspecialized` integers get no variant of their own when they are 1."""
    return lambda function: triton.jit(function, do_not_specialize=list(unspecialized))


@jit()
def _probe(x: tl.tensor) -> None:
    tl.store(x, 0)


def interpreted() -> bool:
    """Whether kernels of this process run in Triton's interpreter, all of Triton's own functions included."""
    return not isinstance(_probe, triton.JITFunction) and not isinstance(tl.sum, triton.JITFunction)


def launch(kernel: Any, programs: int, like: Tensor, *arguments: Any, **options: Any) -> None:
    """Runs a kernel's programs on the device of a tensor; none does nothing.

    Raises:
        BackendError: kernels do not run on that device.
    """
    if like.device.type != ("cpu" if interpreted() else "cuda"):
        raise BackendError(_told(like.device.type))
    if programs:
        with nullcontext() if interpreted() else torch.cuda.device(like.device):
            kernel[(programs,)](*arguments, **options)


def direct(x: Tensor) -> bool:
    """Whether an operator's function may be called itself, without what dispatch costs: nothing traces or wants
    gradients.
    """
    return type(x) is Tensor and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def _told(device: str) -> str:
    if interpreted():
        return f"Triton's interpreter runs kernels on CPU tensors, not on {device}: unset TRITON_INTERPRET for that"
    return (
        f"kernels run on a CUDA device, not on {device}; without one, start Python with TRITON_INTERPRET=1 in its "
        "environment to run them in Triton's interpreter, slowly"
    )


def ceil_div(count: int, size: int) -> int:
    """How many parts of a size hold so many."""
    return -(-count // size)


def power_of_two(count: int) -> int:
    """The least power of two that is at least `count`, and at least 1."""
    return 1 << max(0, count - 1).bit_length()
