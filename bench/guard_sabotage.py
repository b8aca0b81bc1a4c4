"""Artifacts damaged in one way each, as the quality guard must find them: a copy whose files and hashes agree.

Knows an artifact's tensors by the last part of their names; must not know how the damage is looked for.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import quant
from quant.manifest import write_manifest

WEIGHTS = "denoiser.safetensors"
TABLE_PARTS = ("table", "table_scale", "table_offset", "mask")

Tensors = dict[str, Tensor]


class CannotDamage(Exception):
    """The artifact has nothing that could be damaged so."""


def _one(tensors: Tensors, suffix: str, rng: random.Random) -> str:
    names = sorted(name for name in tensors if name.endswith(suffix))
    if not names:
        raise CannotDamage(f"the artifact has no {suffix.lstrip('.')}")
    return rng.choice(names)


def scale_times_four(tensors: Tensors, rng: random.Random) -> str:
    """One layer's weight scales, four times as great."""
    name = _one(tensors, ".scales", rng)
    tensors[name] = tensors[name] * 4
    return name


def shuffled_table(tensors: Tensors, rng: random.Random) -> str:
    """One layer's table of temporal features, its rows in another order."""
    name = _one(tensors, ".table", rng)
    order = list(range(tensors[name].shape[0]))
    rng.shuffle(order)
    return _reordered(tensors, name, order)


def swapped_rows(tensors: Tensors, rng: random.Random) -> str:
    """One layer's row of one step and its neighbour's, exchanged."""
    name = _one(tensors, ".table", rng)
    order = list(range(tensors[name].shape[0]))
    step = rng.randrange(len(order) - 1)
    order[step], order[step + 1] = order[step + 1], order[step]
    return f"{_reordered(tensors, name, order)}, steps {step} and {step + 1}"


def _reordered(tensors: Tensors, table: str, order: list[int]) -> str:
    for part in TABLE_PARTS:
        name = table.removesuffix("table") + part
        if name in tensors:
            tensors[name] = tensors[name][order].contiguous()
    return table


def three_bits(tensors: Tensors, rng: random.Random) -> str:
    """All 8-bit weights, rounded to eight levels for each output channel."""
    names = [name for name, tensor in tensors.items() if name.endswith(".integers") and tensor.dtype is torch.int8]
    if not names:
        raise CannotDamage("the artifact has no weights of 8 bits")
    for name in names:
        rows = tensors[name].float().flatten(1)
        step = rows.abs().amax(1, keepdim=True).clamp(min=1) / 3.5
        levels = (rows / step).round().clamp(-4, 3) * step
        tensors[name] = levels.round().clamp(-128, 127).to(torch.int8).reshape(tensors[name].shape)
    return f"{len(names)} layers"


def wrong_zero_point(tensors: Tensors, rng: random.Random) -> str:
    """One layer's input zero point, off by an eighth of its range."""
    name = _one(tensors, ".input_zero_point", rng)
    tensors[name] = tensors[name] + (32 if int(tensors[name]) < 128 else -32)
    return name


SABOTAGES: dict[str, Callable[[Tensors, random.Random], str]] = {
    "scale-x4": scale_times_four,
    "shuffled-table": shuffled_table,
    "swapped-rows": swapped_rows,
    "three-bits": three_bits,
    "zero-point": wrong_zero_point,
}


def damage(source: Path, target: Path, kind: str, seed: int) -> str:
    """Copies an artifact and damages the copy; says what was hit.

    Raises:
        CannotDamage: the artifact has nothing of that kind.
    """
    if target.exists():
        shutil.rmtree(target)
    shutil.copytree(source, target)
    tensors = load_file(target / WEIGHTS)
    hit = SABOTAGES[kind](tensors, random.Random(seed))  # noqa: S311  (places are to be the same again)
    save_file(tensors, target / WEIGHTS)
    manifest = quant.read_manifest(target)
    files = dict(manifest.files) | {WEIGHTS: quant.sha256_of([target / WEIGHTS])}
    write_manifest(target, manifest.model_copy(update={"files": files}))
    return hit
