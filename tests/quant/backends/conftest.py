"""Sets Triton up before any test of the cuda backend imports it."""

from __future__ import annotations

import tests.quant.kernels.on  # noqa: F401  (first of all)
