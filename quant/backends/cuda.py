"""The cuda backend: our kernels on NVIDIA GPUs, eagerly; in Triton's interpreter on a CPU where it is asked for.

Integers are those of the reference backend and sums of them are exact; what is left of differences comes of float
operations. On a GPU these may depend, in their last bits, on how many rows run together: a row's answer depends on its
company by as much as float models' do there.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from quant.backends.call import Call, run_in_parts
from quant.backends.cuda_install import install
from quant.backends.cuda_layers import Once
from quant.backends.cuda_products import Products, choose
from quant.backends.cuda_waiting import Overwritten, Switch, computed
from quant.backends.moment import PREFIX
from quant.errors import BackendError
from quant.guidance.share import NO_SHARING, Patterns, run_shared
from quant.kernels import tuning
from quant.kernels.device import interpreted

_log = logging.getLogger(__name__)

MOST_ROWS: Final = 64
"""Larger calls run in parts."""

LEAST_CAPABILITY: Final = (8, 0)
"""Of GPUs: before, there is no bfloat16, and Triton supports no products of int8."""


def device_at_hand() -> torch.device:
    """Where kernels run in this process.

    Raises:
        BackendError: nowhere.
    """
    if interpreted():
        return torch.device("cpu")
    if not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a build without CUDA"
        raise BackendError(
            f"the cuda backend needs an NVIDIA GPU, and torch {torch.__version__} ({built}) sees none; the openvino "
            "backend runs on CPUs, and TRITON_INTERPRET=1 in the environment runs the kernels in Triton's interpreter"
        )
    found = torch.cuda.get_device_capability()
    if found < LEAST_CAPABILITY:
        told = f"{torch.cuda.get_device_name()} has compute capability {found[0]}.{found[1]}"
        raise BackendError(f"the cuda backend needs compute capability 8.0 or more; {told}")
    return torch.device("cuda", torch.cuda.current_device())


class CudaExecutable:
    """An artifact's module with kernels in the place of its quantized layers. Calls take turns.

    Attributes:
        device: what it runs on.
        dtype: of everything that is not quantized.
        kernels: what runs each quantized layer, by its dotted name.
        float_layers: quantized layers that no kernel runs, to the reason; they compute in float32 on the device.
    """

    fallbacks = 0

    def __init__(
        self,
        module: Callable[[], nn.Module],
        cache_dir: Path,
        *,
        dtype: torch.dtype = torch.float32,
        products: Products = "int8",
        patterns: Patterns = NO_SHARING,
        fuses: bool = True,
    ) -> None:
        """`module()` gives the artifact's module, which this takes over.

        `products`: "fp8" runs 8-bit linears in fp8 where the device can, "measured" those that are faster so.
        `fuses`: whether kernels take in the norms, modulations, activations, gates and residuals around products.

        Raises:
            BackendError: kernels do not run in this process, or a table of measured configs is broken.
        """
        self.device, self.dtype = device_at_hand(), dtype
        if dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise BackendError(f"the cuda backend computes in float32, bfloat16 or float16, not {dtype}")
        self._once, self._patterns, self._waits = Once(), patterns, Switch(fuses)
        self._turn = threading.Lock()
        self._use_measured_configs(cache_dir)
        with torch.no_grad():
            own = module().eval().requires_grad_(False).to(self.device)
            installed = install(own, self._once, dtype, self._waits)
            chosen = choose(own, products)
        self.kernels, self.float_layers = {**installed.kernels, **chosen}, installed.float_layers
        self._module: nn.Module | None = own
        self._bytes = sum(tensor.nbytes for tensor in (*own.parameters(), *own.buffers()))

    @property
    def weights_bytes(self) -> int:
        """Bytes of all tensors on the device."""
        return self._bytes if self._module is not None else 0

    def run(self, call: Call) -> Tensor:
        """The denoiser's output [B, ...] float32, on the device of the call; more than MOST_ROWS rows run in parts.

        Raises:
            BackendError: the executable was closed, or rows cannot share attention as the call's pattern says.
        """
        home = next(iter(call.rows.values())).device
        # tensors that are made in inference mode do not count writes, by which `Once` knows them
        with self._turn, torch.inference_mode(False), torch.no_grad():
            module = self._module  # closing does not wait for the call that runs
            if module is None:
                raise BackendError("the cuda executable was closed")
            answer = run_in_parts(self._moved(call), MOST_ROWS, lambda part: self._answer(module, part))
            return answer.float().to(home)

    def _answer(self, module: nn.Module, part: Call) -> Tensor:
        try:
            answer: Tensor = computed(run_shared(module, part, self._patterns))
            return answer
        except Overwritten:
            _log.warning(
                "%s writes over what it has normalized: its norms, gates and residuals are left to torch from now on",
                type(module).__name__,
            )
            self._waits.on = False
            return self._answer(module, part)
        finally:
            self._once.forget()  # the next part may meet the same tensor at another moment

    def close(self) -> None:
        """Lets go of the module."""
        self._module = None

    def _moved(self, call: Call) -> Call:
        """The call on the device; samples, text and the like in the model's dtype, times and moments as they are."""

        def there(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: self._there(tensor, self._follows(call, name, tensor)) for name, tensor in tensors.items()}

        return replace(call, rows=there(call.rows), shared=there(call.shared))

    def _there(self, tensor: Tensor, follows: bool) -> Tensor:
        moved = tensor.to(self.device, self.dtype if follows else tensor.dtype)
        return moved.clone() if moved.is_inference() else moved

    def _follows(self, call: Call, name: str, tensor: Tensor) -> bool:
        """Whether a tensor argument takes the model's dtype."""
        return tensor.is_floating_point() and not name.startswith(PREFIX) and call.role(name) != "time"

    def _use_measured_configs(self, cache_dir: Path) -> None:
        if self.device.type == "cuda":
            path = cache_dir / "cuda" / tuning.file_name(torch.cuda.get_device_name(self.device))
            if path.is_file():
                tuning.activate(tuning.read(path))
