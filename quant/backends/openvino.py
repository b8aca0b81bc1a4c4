"""The openvino backend: int8 kernels on CPUs, one compiled graph per call signature (pattern too) and number of rows.

Numbers of rows are fixed in each compiled graph and smaller batches are padded up. Fixed shapes run faster than free
ones, and, measured, give a row the same bits in every batch size and place: pictures do not depend on their company.
Graphs of one artifact are traced once and kept on disk; compiled code is kept in memory up to a bound, and on disk.
"""

from __future__ import annotations

import gc
import hashlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quant.backends import compiled, context, convert, disk, fitting, kernels, rotary, runtime
from quant.backends.call import Call, run_in_parts
from quant.backends.context import Context
from quant.backends.moment import forget_steps
from quant.backends.room import Grow, without_bound
from quant.errors import BackendError
from quant.guidance.share import NO_SHARING, Patterns, sharing
from quant.making import MAKING
from quant.manifest import Manifest

BUCKETS = (1, 2, 4, 8, 16)
"""Numbers of rows that graphs are compiled for; larger calls run in parts."""

COPIES_BYTES = 1 << 30
"""Each compiled graph holds its own packed weights: so many bytes of copies are kept, and at least MIN_COMPILED; fewer
where whoever opened the artifact has no room for more."""

MIN_COMPILED, MAX_COMPILED = 2, 16

_log = logging.getLogger(__name__)


_Key = tuple[str, int]
"""A call's signature, and rows."""

_Parts = list[tuple[Any, Any]]
"""Compiled graphs, each with what is mapped for it: what follows the steps, and, where there is such, what does not."""

GRAPHS = 4
"""Counts the ways in which graphs were written so far: those of other code are not taken for ours."""


class _Compiled:
    """One compiled graph with its one request, and the one that its text goes through; calls take turns."""

    def __init__(self, parts: _Parts, call: Call, rows: int) -> None:
        self.model, self.rows = parts[0][0], rows
        self._parts = parts  # what is mapped lives as long as the graphs that may look into it
        self.context = Context(parts[1][0], call) if len(parts) > 1 else None
        self._names = convert.input_names(self.model, call)
        self._request = self.model.create_infer_request()
        self._turn = threading.Lock()

    def run(self, call: Call) -> Tensor:
        tensors = call.padded(self.rows).tensors()
        with self._turn:
            told = self.context.of(tensors) if self.context else {}
            inputs = [told[name] if name in told else _array(tensors[name]) for name in self._names]
            result = self._request.infer(inputs, share_inputs=True, share_outputs=True)
            return call.unpadded(torch.from_numpy(result[0])).clone()


def _array(tensor: Tensor) -> Any:
    return tensor.detach().contiguous().numpy()


class OpenVinoExecutable:
    """An artifact compiled on demand. Threads may share it; no graph is ever compiled twice at once."""

    fallbacks = 0

    def __init__(
        self,
        module: Callable[[], nn.Module],
        manifest: Manifest,
        cache_dir: Path,
        *,
        cache_bytes: int = disk.CACHE_BYTES,
        threads: int = 0,
        patterns: Patterns = NO_SHARING,
        grow: Grow = without_bound,
    ) -> None:
        convert.refuse(manifest.forms)
        identity = f"{GRAPHS} {sorted(manifest.files.items())} {manifest.recipe} {runtime.version()}"
        self._module, self._patterns = module, patterns
        self._bytes = manifest.memory_bytes
        self._cache, self._cache_bytes = cache_dir / "openvino", cache_bytes
        self._folder = self._cache / hashlib.sha256(identity.encode()).hexdigest()[:24]
        self._properties = runtime.properties(threads)
        self._float_in, self._by_phases = manifest.float_in, manifest.upsampling == "polyphase"
        self._room = max(MIN_COMPILED, min(MAX_COMPILED, COPIES_BYTES // max(1, self._bytes)))
        self._ready: OrderedDict[_Key, Future[_Compiled]] = OrderedDict()
        self._grow, self._growing = grow, threading.Lock()
        self._lock = threading.Lock()
        self._converting = threading.Lock()
        self._closed = False

    @property
    def weights_bytes(self) -> int:
        """Bytes of the artifact's weights, times the number of compiled copies (at least one)."""
        return 0 if self._closed else self._bytes * max(1, len(self._ready))

    def run(self, call: Call) -> Tensor:
        """The denoiser's output [B, ...] float32; calls of more than 16 rows run in parts.

        Raises:
            BackendError: the graph cannot be converted or compiled, the executable was closed, or rows cannot share
                attention as the call's pattern says.
        """
        return run_in_parts(call, BUCKETS[-1], lambda part: self._compiled(part).run(part))

    def int8_share(self, call: Call) -> float:
        """Share of the multiply-adds of a call that run in int8 kernels, 0..1, by the compiled graph."""
        call = call.take(call.parts(BUCKETS[-1])[0])
        compiled = self._compiled(call)
        model = self._fitted(call, compiled.rows)
        parts = [compiled.model, compiled.context.model] if compiled.context else [compiled.model]
        return sum(map(kernels.int8_multiply_adds, parts)) / kernels.multiply_adds(model)

    def close(self) -> None:
        """Lets go of all compiled graphs; the executable cannot run again."""
        with self._lock:
            self._closed = True
            self._ready.clear()

    def _compiled(self, call: Call) -> _Compiled:
        key = (call.signature(), bucket(call.count))
        future = self._known(key)
        if future is not None:
            return future.result()
        with self._growing:
            future = self._known(key)
            mine = future is None
            if future is None:
                future = Future()
                self._take_room(key, future)
        if mine:
            self._compile_for(key, call, future)
        return future.result()

    def _known(self, key: _Key) -> Future[_Compiled] | None:
        """What is compiled under a key, or is being compiled."""
        with self._lock:
            if self._closed:
                raise BackendError("the openvino executable was closed")
            future = self._ready.get(key)
            if future is not None:
                self._ready.move_to_end(key)
            return future

    def _take_room(self, key: _Key, future: Future[_Compiled]) -> None:
        """Puts what is to be compiled among the copies; where there is no room for one more, the oldest goes."""

        def take() -> None:
            with self._lock:
                self._ready[key] = future

        while True:
            held = self._bytes * len(self._ready)
            if len(self._ready) < self._room and self._grow(held, self._bytes, take):
                return
            if not self._ready:
                break
            with self._lock:
                self._ready.popitem(last=False)
        take()  # one copy is always had

    def _compile_for(self, key: _Key, call: Call, future: Future[_Compiled]) -> None:
        try:
            future.set_result(self._compile(call, key[1]))
        except BaseException as error:
            with self._lock:
                self._ready.pop(key, None)
            future.set_exception(error)
            raise

    @runtime.tight_memory()
    def _compile(self, call: Call, rows: int) -> _Compiled:
        parts = self._compiled_before(call, rows)
        if parts is None:
            fresh = self._compile_anew(call, rows)
            if not self._kept(fresh):
                return _Compiled([(one, None) for one, _ in fresh], call, rows)
            del fresh  # with the graphs' own weights, which what is read back has not
            parts = self._compiled_before(call, rows)
        if parts is None:  # the folder cannot be mapped, or another process removed it at once, to keep the bound
            parts = [(one, None) for one, _ in self._compile_anew(call, rows)]
        runtime.give_back_memory()
        return _Compiled(parts, call, rows)

    def _compiled_before(self, call: Call, rows: int) -> _Parts | None:
        for halves in (True, False) if self._float_in == "bfloat16" else (False,):
            found = compiled.read(self._code(call, rows, halves), self._asked(halves))
            if found is not None and not any(map(convert.is_context, found[0].inputs)):
                return [found]
            text = found and compiled.read(self._code(call, rows, halves, "-text"), self._asked(halves))
            if found is not None and text is not None:
                return [found, text]
        return None

    def _kept(self, fresh: Sequence[tuple[Any, Path]]) -> bool:
        """Keeps compiled code on the disk, within its bound; whether there was room for it."""
        kept = all(compiled.write(one, code) for one, code in reversed(fresh))
        disk.keep_within(self._cache, self._cache_bytes)
        return kept

    def _compile_anew(self, call: Call, rows: int) -> list[tuple[Any, Path]]:
        """Compiled graphs, what follows the steps first, and where each is to be kept."""
        model = self._fitted(call, rows)
        halves = self._takes_bfloat16(model)
        rest, text = context.cut(model, call, halves=halves)
        del model
        parts = [("", rest)] + ([("-text", text)] if text is not None else [])
        try:
            fresh = [
                (runtime.core().compile_model(one, "CPU", self._asked(halves)), self._code(call, rows, halves, name))
                for name, one in parts
            ]
        except RuntimeError as error:
            raise BackendError(f"OpenVINO cannot compile the graph for {rows} rows: {error}") from error
        _log.info("compiled %s for %d rows", call.signature(), rows)
        return fresh

    def _asked(self, halves: bool) -> dict[str, Any]:
        return self._properties | (runtime.IN_BFLOAT16 if halves else {})

    def _code(self, call: Call, rows: int, halves: bool, part: str = "") -> Path:
        name = f"{call.signature()}{self._patterns.key(call)}-{rows}{'-bf16' if halves else ''}{part}.blob"
        return self._folder / "compiled" / name

    def _takes_bfloat16(self, model: Any) -> bool:
        """Whether a graph runs in bfloat16 what is not integer; told to the log where that was asked for in vain."""
        if self._float_in != "bfloat16":
            return False
        why = "" if runtime.has_bfloat16() else "this CPU has no units for it"
        if convert.computes_angles(model):
            why = "the graph takes sines, which timesteps rounded to bfloat16 would spoil"
        if why:
            _log.warning("the artifact asks for bfloat16 beside integers; computing in float32: %s", why)
        return not why

    def _fitted(self, call: Call, rows: int) -> Any:
        """The traced graph for calls of this signature, for that many rows."""
        path = self._graph(call)
        try:
            model = runtime.core().read_model(path)
        except RuntimeError:
            if path.is_file():
                raise
            model = runtime.core().read_model(self._graph(call))  # another process removed it, to keep the bound
        fitting.fit(model, call, rows, by_phases=self._by_phases)
        return model

    def _graph(self, call: Call) -> Path:
        """The traced graph on disk for calls of this signature; traced now if it is not there yet."""
        path = self._folder / f"{call.signature()}{self._patterns.key(call)}.xml"
        with self._converting:
            disk.mark_used(path)
            if not (path.is_file() and path.with_suffix(".bin").is_file()):
                with MAKING:
                    module = self._module()
                    forget_steps(module)
                    with sharing(module, call, self._patterns):
                        graph = convert.convert(module, call)
                    rotary.rewrite(graph)
                    convert.write(graph, path)
                    del graph
                    del module
                gc.collect()  # traced graphs hold cycles; the torch copy of the weights goes with them
                runtime.give_back_memory()
        return path


def bucket(rows: int) -> int:
    """The smallest number of rows compiled for that holds so many.

    Raises:
        ValueError: there is none, or no row.
    """
    if not 1 <= rows <= BUCKETS[-1]:
        raise ValueError(f"a compiled graph takes 1 to {BUCKETS[-1]} rows, not {rows}")
    return next(size for size in BUCKETS if size >= rows)
