"""`python -m bench gpu`: ours on a GPU beside torch and torchao, interleaved in one run; single products, whole models.

`python -m bench.gpu --tune` measures the kernels' tiles first, and writes the table that the backend reads. Without a
GPU it refuses, unless TRITON_INTERPRET=1 has the kernels run in Triton's interpreter: then times say nothing.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch

import quant
from bench import gpu_time
from bench.calls import Answered
from bench.cpu_cells import Size, packages, resolved
from bench.machine import describe
from bench.numbers import keep
from bench.rivals import Rival, Runner, rival
from bench.subjects import Subject, subject
from bench.table import Found
from pipelines.load import quiet
from quant.kernels import tuning
from quant.kernels.tuning import Table

RIVALS: Final[Mapping[str, str]] = {
    "torch-bf16": "gpu_float:EAGER",
    "torch-bf16-compiled": "gpu_float:COMPILED",
    "torchao-int8": "gpu_torchao:INT8_EAGER",
    "torchao-int8-compiled": "gpu_torchao:INT8",
    "torchao-fp8-compiled": "gpu_torchao:FP8",
    "cuda-tfmq-w8a8": "gpu_ours:TFMQ_INT8",
    "cuda-tfmq-w8a8-apart": "gpu_ours:TFMQ_APART",
    "cuda-tfmq-w8a8-measured": "gpu_ours:TFMQ_MEASURED",
    "cuda-trdq-w8a8": "gpu_ours:TRDQ_INT8",
    "cuda-tfmq-w4a8": "gpu_ours:TFMQ_W4",
}
"""Names to where they are made, in the order of tables."""

PRODUCTS: Final = (
    "linear-1024x1152x1152", "linear-4096x1152x1152", "linear-4096x1152x4608", "linear-4096x4608x1152",
    "linear-4096x3072x3072", "linear-4608x3072x12288", "linear-4608x12288x3072", "linear-16x3072x18432",
    "conv-320x320x64", "conv-640x640x32", "conv-1280x1280x16",
)  # fmt: skip
"""See `bench.gpu_products`."""

FULL: Final = Size(subjects=(*PRODUCTS, "sd15@64", "pixart@64"), rivals=tuple(RIVALS), rounds=9, warm=3, pictures=0)
QUICK: Final = Size(
    subjects=("linear-32x32x48", "conv-16x16x4"), rivals=("torch-bf16", "cuda-tfmq-w8a8"), rounds=1, warm=1, pictures=0
)
"""Shows that it works; its numbers say nothing."""

HEAD: Final = """# Ours on a GPU, and rivals

Made by `python -m bench gpu` on {device}, {date}. Versions: {versions}. Tiles of our kernels: {tiles}. Medians of
{rounds} interleaved rounds. Times of single products are the device's own; rounding of inputs is counted but where a
row says otherwise. A call of a model brings its inputs from the CPU and its answer back. Error: of the answer, relative
to float32. Memory: what opening a rival and its first calls took of the device's at most, beside what others hold.
"""


def run(size: Size) -> None:
    """Measures everything asked for and writes tables; a quick run only prints."""
    device = gpu_time.device()
    from bench import gpu_products  # needs Triton, which not every machine has

    quiet()
    size = resolved(size)
    table = tuned(size.root, device)
    tuning.activate(table)
    products = [name for name in size.subjects if name.startswith(("linear-", "conv-"))]
    models = [name for name in size.subjects if name not in products]
    found: Found = {
        "device": gpu_time.name_of(device),
        "machine": describe(),
        "packages": packages(),
        "rounds": size.rounds,
        "tiles": "chosen by hand" if table is None else table.note,
        "products": [gpu_products.compare(name, device, size.rounds) for name in products],
        "models": [model(subject(name, size.root), size) for name in models],
    }
    text = markdown(found)
    if size.rounds < FULL.rounds:
        print(text)
    else:
        keep("gpu", found, text)


def tuned(root: Path, device: torch.device) -> Table | None:
    """The table that `--tune` wrote for this device; None if it did not."""
    path = tuned_path(root, device)
    return tuning.read(path) if path.is_file() else None


def tuned_path(root: Path, device: torch.device) -> Path:
    """Where it lies."""
    return root / "cuda" / tuning.file_name(gpu_time.name_of(device))


def model(about: Subject, size: Size) -> Found:
    """A model's rows: each rival's, or why it has no times."""
    about.prepare()
    test = about.test()
    rows: dict[str, Found] = {}
    open_ones: dict[str, Runner] = {}
    for name in size.rivals:
        one = rival(name, RIVALS)
        rows[name] = {"rival": name, "note": one.note}
        reason = one.why_not()
        try:
            if reason is None:
                open_ones[name] = _opened(one, about, test[0], rows[name], size)
        except Exception as error:  # noqa: BLE001  (whatever a rival dies of is told as its reason)
            reason = f"{type(error).__name__}: {error}"
        if reason is not None:
            rows[name]["failed"] = " ".join(reason.split())[:300]
    for number in range(size.rounds):
        for name, runner in open_ones.items():
            call = test[number % len(test)].call
            rows[name].setdefault("call_seconds", []).append(gpu_time.seconds(lambda: runner.run(call)))  # noqa: B023
    for runner in open_ones.values():
        runner.close()
    return {"subject": about.name, "rows": list(rows.values())}


def _opened(one: Rival, about: Subject, first: Answered, row: Found, size: Size) -> Runner:
    work = about.work(one.name, size.cores)
    if one.builds:
        one.build(work)
    before = _memory()
    runner = one.open(work)
    for _ in range(size.warm):
        answer = runner.run(first.call)
    row["call_error"] = quant.relative_error(answer, first.answer)
    row["memory"] = _peak() - before
    return runner


def _memory() -> int:
    if not torch.cuda.is_available():
        return 0
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _peak() -> int:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0


def markdown(found: Found) -> str:
    """All tables."""
    versions = ", ".join(f"{name} {version}" for name, version in found["packages"].items())
    date = found["machine"]["date"]
    lines = [
        HEAD.format(device=found["device"], date=date, versions=versions, rounds=found["rounds"], tiles=found["tiles"])
    ]
    for one in found["products"]:
        times = one["microseconds"]
        base = times["torch bfloat16"]
        lines += [f"\n## {one['shape']}\n", "| | microseconds | bfloat16 / this |", "|---|---|---|"]
        lines += [f"| {name} | {took:.1f} | {base / took:.2f} |" for name, took in times.items()]
        lines += [f"| {name} | - | {why} |" for name, why in one.items() if name.startswith("ours")]
    for one in found["models"]:
        lines += [
            f"\n## {one['subject']}\n",
            "| rival | s per call | error | memory, MB | note |",
            "|---|---|---|---|---|",
        ]
        lines += [_line(row) for row in one["rows"]]
    return "\n".join(lines)


def _line(row: Found) -> str:
    if "failed" in row:
        return f"| {row['rival']} | - | - | - | did not run: {row['failed']} |"
    took = statistics.median(row["call_seconds"])
    return f"| {row['rival']} | {took:.4f} | {row['call_error']:.4f} | {row['memory'] / 1e6:.0f} | {row['note']} |"


def main() -> None:
    """The bench alone, with what only it takes."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="tiny shapes: shows that it works, numbers say nothing")
    options.add_argument("--subject", action="append", help="measure this alone; may be given several times")
    options.add_argument("--tune", action="store_true", help="measure the kernels' tiles, and nothing else")
    options.add_argument("--root", type=Path, default=FULL.root, help="where what is made and measured is kept")
    told = options.parse_args()
    if told.tune:
        device = gpu_time.device()
        from bench import gpu_tune

        path = tuned_path(told.root, device)
        gpu_tune.tune(path, device)
        print(f"wrote {path}: the backend reads it from the folder `cuda` of its cache")
    else:
        size = QUICK if told.quick else FULL
        run(replace(size, subjects=tuple(told.subject or size.subjects), root=told.root))


if __name__ == "__main__":
    main()
