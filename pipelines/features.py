"""Temporal features of a model's profiles, step by step, as they leave the layers that make them or look them up.

Must not know how any profile was quantized.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

import quant
from jobs.profile import FLOAT, Defaults, ProfileCard
from pipelines.calibrate import runner
from pipelines.families import Subject
from pipelines.library_call import plain
from pipelines.load import Components, load_denoiser
from pipelines.quantized import open_reference
from quant.metrics import Features


def steps_of(components: Components, denoiser: nn.Module, subject: Subject, defaults: Defaults) -> list[quant.Call]:
    """One row of every denoiser call that drawing one subject makes: a call for each timestep, in order.

    Of a call of both branches it is the conditional row. `denoiser` is the float one, which answers.
    """
    seen: list[quant.Call] = []

    def answer(call: quant.Call) -> Tensor:
        timesteps = [old.timestep for old in seen]
        row = plain(call.take(torch.tensor([_conditional_row(call)])))
        if row.timestep is None or not any(old is not None and torch.equal(old, row.timestep) for old in timesteps):
            seen.append(row)
        return quant.call_module(denoiser, call)

    runner(components, [subject], defaults)(answer)
    return seen


def _conditional_row(call: quant.Call) -> int:
    found = (call.clock.branch == quant.COND).nonzero()
    return int(found[0]) if len(found) else 0


def temporal_features(
    components: Components,
    cards: Sequence[ProfileCard],
    subject: Subject,
    defaults: Defaults,
    denoiser: nn.Module | None = None,
) -> Mapping[str, Features]:
    """Every profile's temporal features by module, each [steps, width] float32; empty where the model has none.

    Features are what E0 and E1 frontier layers put out: they depend on the step alone once the request is given.
    `denoiser` is the float one, loaded where it is left out.
    """
    denoiser = denoiser or load_denoiser(components)
    calls = steps_of(components, denoiser, subject, defaults)
    leaves = [leaf for leaf in quant.examine(denoiser, calls[0]).leaves if leaf.frontier]
    names = [leaf.name for leaf in leaves]
    if not names:
        return {}
    found = {FLOAT: quant.features_of(denoiser, names, calls)}
    for card in cards:
        if card.name != FLOAT:
            module, source = open_reference(card, components)
            found[card.name] = quant.features_of(module, names, calls, source)
    return found
