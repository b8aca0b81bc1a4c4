"""A model's forward that stops midway and goes on later, and how much memory it holds meanwhile. Knows no layers.

Python has no way to leave a foreign function and come back, but a thread has a stack of its own. Only one of them runs
at any time, and whoever lets it go on waits for it, so this is a coroutine, not concurrency.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode


class _Abandoned(BaseException):
    """Unwinds a forward that nobody wants any more; no `except Exception` of a model may stop it."""


class Waiting:
    """A function that runs, without gradients, until it waits, and goes on from there when told."""

    def __init__(self, body: Callable[[], object]) -> None:
        self._body = body
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._may_run, self._has_stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._abandoned = False
        self._error: BaseException | None = None
        self.finished = False

    def go_on(self) -> None:
        """Runs until the next wait, or to the end. What the function raises is raised here."""
        if self._thread.ident is None:
            self._thread.start()
        self._may_run.release()
        self._has_stopped.acquire()
        if self._error is not None:
            raise self._error

    def wait(self) -> None:
        """Called from within the function: stops it until `go_on`."""
        self._has_stopped.release()
        self._may_run.acquire()
        if self._abandoned:
            raise _Abandoned

    def abandon(self) -> None:
        """Ends it where it waits."""
        if self._thread.ident is None or self.finished:
            return
        self._abandoned = True
        self._may_run.release()
        self._thread.join()

    def _run(self) -> None:
        self._may_run.acquire()
        try:
            if not self._abandoned:
                with contextlib.suppress(_Abandoned), torch.no_grad():
                    self._body()
        except BaseException as error:  # noqa: BLE001  (raised again where the caller waits)
            self._error = error
        finally:
            self.finished = True
            self._has_stopped.release()


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within it, `now` is how many bytes of tensors that were made since are still alive; `owned` are not counted."""

    def __init__(self, owned: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._owned = {tensor.untyped_storage().data_ptr() for tensor in owned}
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    @property
    def now(self) -> int:
        """Bytes alive."""
        self._made = {key: made for key, made in self._made.items() if not _is_gone(made[0])}
        return sum(size for _, size in self._made.values())

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, tuple | list) else (output,):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self._owned:  # else a view of a weight
                    self._made[storage.data_ptr()] = (StorageWeakRef(storage), storage.nbytes())  # type: ignore[no-untyped-call]
        return output


def _is_gone(reference: StorageWeakRef) -> bool:
    return bool(reference.expired())  # type: ignore[no-untyped-call]
