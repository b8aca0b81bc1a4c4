"""What an autoencoder decodes in: as it is loaded, or in bfloat16 where a CPU has units for it. Must not know jobs."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from quant.backends.runtime import has_bfloat16
from quant.recipe_parts import FloatIn

_log = logging.getLogger(__name__)


def decoding_in(asked: FloatIn, latents: Tensor) -> AbstractContextManager[object]:
    """Held around an autoencoder's decoding of `latents`.

    Weights stay float32 in memory; products are taken in bfloat16, sums of them in float32. On a GPU the autoencoder
    has half the bits already, and nothing changes; on a CPU without the units neither, which is told to the log.
    """
    if asked == "float32" or latents.device.type != "cpu" or latents.dtype != torch.float32:
        return nullcontext()
    if not has_bfloat16():
        _log.warning("the profile asks for decoding in bfloat16; decoding in float32: this CPU has no units for it")
        return nullcontext()
    return torch.autocast("cpu", torch.bfloat16)
