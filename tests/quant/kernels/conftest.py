"""Sets Triton up before any test of a kernel imports it, and makes random numbers."""

from __future__ import annotations

import tests.quant.kernels.on  # noqa: F401  (first of all)
