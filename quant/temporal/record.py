"""Records what a forward does with tensors of known values, as a list that can be played again with other values.

Everything else in the forward is fake: tensors that have shapes and no values. A torch call whose arguments are all
real and of which some depend on the inputs is written down; one that a fake takes part in is not. Leaf modules are
written down as calls of the leaf, not as what they do inside. Must not know what the tensors mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode

from quant.temporal.tape import Apply, LeafCall, Operation, Ref, Tape, mapped, needed, tensors_of

ABOUT_SHAPE = frozenset(
    (
        *("dim", "size", "numel", "nelement", "ndimension", "stride", "storage_offset"),
        *("element_size", "__len__", "__hash__", "__get__", "is_floating_point", "is_complex", "is_contiguous"),
        *("is_signed", "is_tensor", "is_storage", "is_inference", "is_conj", "is_neg", "is_same_size"),
        "get_device",
    )
)
"""Functions whose answers are plain numbers and depend on shapes and dtypes only."""

SHAPE_BY_VALUE = frozenset(
    ("nonzero", "argwhere", "unique", "unique_consecutive", "masked_select", "bincount", "histc", "numpy", "tolist")
)
"""Functions whose results have a shape, or are Python's own numbers, that depend on values."""

SHAPE_ONLY = frozenset(
    (
        *(f"{value}_like" for value in ("zeros", "ones", "empty", "full")),
        *(f"new_{v}" for v in ("zeros", "ones", "full")),
    )
)
"""Functions whose results take shape and dtype of an argument and no values."""

LIKE_ANOTHER = frozenset(("type_as", "to", "expand_as", "view_as", "reshape_as"))
"""Functions that make a tensor like another one, of which they take no values."""


class ReadsValues(Exception):
    """The forward decides by values of tensors what to do: it cannot be played again with others."""


class Recorder(TorchFunctionMode):
    """While entered, writes down what is done with real tensors that depend on given ones.

    A real tensor that a fake was written into is no longer known: wherever it is used from then on, a fake takes its
    place.
    """

    def __init__(self, mode: FakeTensorMode, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self._mode = mode
        self._known: dict[int, int] = {}
        self._kept: list[Any] = []  # so that no id is used twice
        self._spoiled: set[int] = set()
        self._origins: dict[int, frozenset[str]] = {}
        self._depth = 0
        self._operations: list[Operation] = []
        self._changes = False
        self._reads: str | None = None
        self.calls: list[LeafCall] = []
        self.outputs: list[Tensor] = []
        self._inputs = tuple(self._new(tensor, frozenset()) for tensor in inputs)

    def tape(self) -> Tape:
        """What was written down, without what no leaf needs.

        Raises:
            ReadsValues: the forward read values.
        """
        if self._reads is not None:
            raise ReadsValues(self._reads)
        return Tape(self._inputs, needed(self._operations), tuple(self.calls), self._changes)

    def knows(self, value: Any) -> bool:
        """Whether all tensors in a value are real and depend on nothing fake."""
        return not any(self._is_fake(tensor) for tensor in tensors_of(value))

    @contextmanager
    def watching(self, leaves: Mapping[str, nn.Module], apply: Apply | None) -> Iterator[None]:
        """Has calls of leaves written down as such; with `apply`, it makes their outputs."""

        def enter(*_: Any) -> None:
            self._depth += 1

        def leave(name: str) -> Callable[..., Any]:
            def hook(leaf: nn.Module, arguments: Any, keywords: Any, output: Any) -> Any:
                try:
                    if self._depth == 1:
                        return self._leaf(name, leaf, arguments, keywords, output, apply)
                finally:
                    self._depth -= 1
                return None

            return hook

        handles = [leaf.register_forward_pre_hook(enter) for leaf in leaves.values()]
        handles += [leaf.register_forward_hook(leave(name), with_kwargs=True) for name, leaf in leaves.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs one torch function and writes it down if it must be."""
        keywords = kwargs or {}
        tensors = list(tensors_of((args, keywords)))
        if any(self._is_fake(tensor) for tensor in tensors):
            return self._fake(func, args, keywords, tensors)
        if self._depth or not any(id(tensor) in self._known for tensor in tensors):
            return func(*args, **keywords)
        written = list(tensors_of(_target(func, args, keywords)))
        self._adopt(written)
        result = func(*args, **keywords)
        self._note_reads(func, args, result)
        outputs = list(tensors_of(result))
        if outputs or result is None:
            self._write(func, args, keywords, outputs, written)
        return result

    def _fake(self, func: Any, args: Any, keywords: Any, tensors: list[Tensor]) -> Any:
        """Runs a function that a fake takes part in: its results are fake, and what it writes into is spoiled.

        Unless it looks at the fake's shape and dtype only, as zeros_like and type_as do: then its results are real.
        """
        stood_in, named = mapped(args, self._stand_in), mapped(keywords, self._stand_in)
        if getattr(func, "__name__", "") in SHAPE_ONLY:
            return func(*stood_in, **named)
        written = [tensor for tensor in tensors_of(_target(func, args, keywords)) if not isinstance(tensor, FakeTensor)]
        self._spoiled |= {_storage(tensor) for tensor in written}
        self._kept += written
        result = func(*self._faked(args), **self._faked(keywords))
        outputs = list(tensors_of(result))
        if getattr(func, "__name__", "") not in LIKE_ANOTHER:  # pad_sequence fills a real tensor with fake rows
            fresh = [one for one in outputs if not isinstance(one, FakeTensor) and not _shares(one, tensors)]
            self._spoiled |= {_storage(one) for one in fresh}
            self._kept += fresh
        if (
            outputs
            and self._depth == 0
            and self.knows(outputs)
            and any(id(tensor) in self._known for tensor in tensors)
        ):
            self._write(func, stood_in, named, outputs, [])
        return result

    def _stand_in(self, tensor: Tensor) -> Tensor:
        """A real tensor of the same shape without memory worth mentioning, for a fake."""
        if not self._is_fake(tensor):
            return tensor
        return torch.zeros((), dtype=tensor.dtype, device=tensor.device).expand(tensor.shape)

    def _faked(self, value: Any) -> Any:
        def change(tensor: Tensor) -> Tensor:
            known = isinstance(tensor, FakeTensor) or not self._is_fake(tensor)
            return tensor if known else self._mode.from_tensor(tensor)

        return mapped(value, change) if self._spoiled else value

    def _is_fake(self, tensor: Tensor) -> bool:
        if isinstance(tensor, FakeTensor):
            return True
        return bool(self._spoiled) and _storage(tensor) in self._spoiled

    def _leaf(self, name: str, leaf: nn.Module, args: Any, keywords: Any, output: Any, apply: Apply | None) -> Any:
        tensors = list(tensors_of((args, keywords)))
        if not self.knows(tensors) or not any(id(tensor) in self._known for tensor in tensors):
            return None
        if apply is not None:
            output = apply(name, leaf, *args, **keywords)
        if not isinstance(output, Tensor) or isinstance(output, FakeTensor):
            return output
        kept = output.clone()  # the model may change it in place
        sources = self._write(name, args, keywords, [output], [], own=frozenset({name}))
        self.outputs.append(kept)
        first = tensors[0]
        by_index = not first.dtype.is_floating_point
        self.calls.append(LeafCall(name, sources, tuple(first.shape), by_index, tuple(output.shape), output.dtype))
        return output

    def _write(
        self,
        function: Any,
        args: Any,
        keywords: Any,
        outputs: list[Tensor],
        written: list[Tensor],
        own: frozenset[str] | None = None,
    ) -> frozenset[str]:
        """Writes an operation down; answers which leaves its arguments came from."""
        tensors = list(tensors_of((args, keywords)))
        reads = frozenset(map(_storage, tensors))
        origins = frozenset[str]().union(*(self._origins.get(storage, frozenset()) for storage in reads))
        arguments, named = mapped(args, self._ref), mapped(keywords, self._ref)
        indices = tuple(self._new(tensor, origins if own is None else own) for tensor in outputs)
        makes = frozenset(map(_storage, (*outputs, *written)))
        self._origins.update(dict.fromkeys(map(_storage, written), origins))
        self._changes |= bool(written)
        self._kept += tensors
        self._operations.append(Operation(function, arguments, named, indices, reads, makes))
        return origins

    def _ref(self, tensor: Tensor) -> Any:
        return Ref(self._known[id(tensor)]) if id(tensor) in self._known else tensor

    def _new(self, tensor: Tensor, origins: frozenset[str]) -> int:
        self._kept.append(tensor)
        index = self._known[id(tensor)] = len(self._kept)
        self._origins[_storage(tensor)] = origins
        return index

    def _adopt(self, targets: list[Tensor]) -> None:
        """Copies constants that are about to be written into: each time the tape is played it needs a fresh one."""
        for tensor in targets:
            if id(tensor) not in self._known:
                before = tensor.clone()
                index, made = self._new(tensor, frozenset()), frozenset({_storage(tensor)})
                self._operations.append(Operation(torch.clone, (before,), {}, (index,), frozenset(), made))

    def _note_reads(self, func: Any, args: Any, result: Any) -> None:
        name = getattr(func, "__name__", str(func))
        number = isinstance(result, bool | int | float | complex) and name not in ABOUT_SHAPE
        mask = name == "__getitem__" and any(
            part.dtype is torch.bool and id(part) in self._known for part in tensors_of(args[1:])
        )
        if number or mask or name in SHAPE_BY_VALUE:
            self._reads = name


def _target(func: Any, args: Any, keywords: Mapping[str, Any]) -> Any:
    """What a torch function changes in place, by torch's naming; nothing where it does not."""
    name = getattr(func, "__name__", "")
    named = name.endswith("_") and not name.endswith("__")
    operator = name == "__setitem__" or (name.startswith("__i") and name not in ("__invert__", "__index__", "__int__"))
    if named or operator or keywords.get("inplace"):
        return args[:1]
    return keywords.get("out", ())


def _storage(tensor: Tensor) -> int:
    """What tells a tensor's memory from others', while it lives; its views share it."""
    return int(tensor.untyped_storage()._cdata)


def _shares(tensor: Tensor, others: Sequence[Tensor]) -> bool:
    """Whether a tensor lies in the storage of one of some real ones."""
    real = {_storage(other) for other in others if not isinstance(other, FakeTensor)}
    return _storage(tensor) in real
