"""Float beside a profile: its answers, remembered, and its seconds, measured. Knows no method of quantization."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from jobs.profile import Defaults
from pipelines.denoiser import Denoiser, DenoiserCall, TorchDenoiser
from pipelines.drawing import draw_batch
from pipelines.families import Subject
from pipelines.load import Components
from quant.recipe_parts import FloatIn

KEPT_BYTES = 2**30
"""Of answers that are remembered; what comes when there are so many is computed every time."""

ROUNDS = 3
"""That count, of pictures drawn by one denoiser and the other in turn."""


class Remembered:
    """The float denoiser, which computes nothing twice, as far as `KEPT_BYTES` go: all rows are compared with the same
    pictures.
    """

    backend = "torch"
    fallbacks = 0
    guidance = None
    precision = None
    decode_in: FloatIn = "float32"

    def __init__(self, denoiser: TorchDenoiser) -> None:
        self.denoiser = denoiser
        self._answers: dict[bytes, Tensor] = {}
        self._bytes = 0
        self.name = denoiser.name
        self.weights_bytes = denoiser.weights_bytes

    def run(self, call: DenoiserCall) -> Tensor:
        """The float denoiser's output."""
        key = hashlib.blake2b(b"".join(_bytes_of(call))).digest()
        known = self._answers.get(key)
        if known is not None:
            return known.clone()
        answer = self.denoiser.run(call)
        if self._bytes + answer.nbytes <= KEPT_BYTES:
            self._bytes += answer.nbytes
            self._answers[key] = answer
        return answer.clone()


def _bytes_of(call: DenoiserCall) -> Iterator[bytes]:
    for tensor in (call.sample, call.timestep, *call.inputs.values()):
        yield tensor.contiguous().numpy().tobytes()


def timed(
    components: Components,
    denoisers: Mapping[str, Denoiser],
    prompts: Sequence[Subject],
    defaults: Defaults,
    *,
    rounds: int = ROUNDS,
) -> dict[str, float]:
    """Seconds for one picture by each denoiser, all prompts drawn together: medians of `rounds` in turn, after one that
    does not count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in denoisers}
    for _ in range(1 + rounds):
        for name, denoiser in denoisers.items():
            drawn = draw_batch(components, denoiser, prompts, range(len(prompts)), defaults)
            seconds[name].append(drawn.seconds)
    return {name: statistics.median(each[1:]) for name, each in seconds.items()}
