"""Modules whose weights are no parameters, for models that ask a part's first parameter for its dtype. Knows no layer.

Wan does: `next(iter(self.time_embedder.parameters())).dtype`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class DtypeBearer(nn.Module):
    """A module with one empty parameter, named `bearer`, that is neither saved nor counted."""

    bearer = "form"

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.register_parameter(self.bearer, nn.Parameter(torch.empty(0, dtype=dtype), requires_grad=False))

    def _save_to_state_dict(self, *arguments: Any) -> None:
        self._without_it(super()._save_to_state_dict, arguments)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self._without_it(super()._load_from_state_dict, arguments)

    def _without_it(self, function: Any, arguments: tuple[Any, ...]) -> None:
        parameter = self._parameters.pop(self.bearer)
        try:
            function(*arguments)
        finally:
            self._parameters[self.bearer] = parameter
