"""Where the tests of kernels run: on a GPU if there is one, else in Triton's interpreter on the CPU.

To be imported before anything that imports Triton.
"""

from __future__ import annotations

import os

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"

from quant.kernels.device import interpreted  # noqa: E402  (Triton reads the environment when it is imported)

if DEVICE == "cpu" and not interpreted():
    raise RuntimeError("Triton was imported before TRITON_INTERPRET=1 was set: start pytest with it in the environment")
