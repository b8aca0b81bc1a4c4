"""Where the tests of kernels run, a GPU or Triton's interpreter on the CPU; and what all operators are held to.

To be imported before anything that imports Triton.
"""

from __future__ import annotations

import os
from typing import Any

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"

from quant.kernels.device import interpreted  # noqa: E402  (Triton reads the environment when it is imported)

if DEVICE == "cpu" and not interpreted():
    raise RuntimeError("Triton was imported before TRITON_INTERPRET=1 was set: start pytest with it in the environment")


def check_operator(operator: Any, arguments: tuple[Any, ...]) -> None:
    """An operator keeps what it promised torch: schema, fake form, what gradients and compiled graphs ask of it."""
    found = torch.library.opcheck(operator, arguments)
    assert found and set(found.values()) == {"SUCCESS"}, found
