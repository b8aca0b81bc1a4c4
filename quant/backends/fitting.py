"""A traced graph made ready for one number of rows: shapes fixed, and written so that kernels do less. No models."""

from __future__ import annotations

from typing import Any

from quant.backends import context, convert, padding, parted, polyphase
from quant.backends.call import Call


def fit(model: Any, call: Call, rows: int, *, by_phases: bool) -> None:
    """Fixes a graph's shapes, in place, and rewrites what is faster another way.

    Args:
        model: an `openvino.Model` for calls of that signature.
        call: tells what its arguments are.
        rows: of its calls.
        by_phases: whether convolutions of doubled pictures are computed at the size before, which rounds weights anew.
    """
    model.reshape(convert.shapes(model, call, rows))
    context.fix_shapes(model)
    parted.rewrite(model)
    if by_phases:
        polyphase.rewrite(model)
    padding.rewrite(model)
