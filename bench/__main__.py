"""`python -m bench NAME ...`: runs benches: load, sampling, promise, tfmq, trdq, tune, video, cpu, gpu, memory, switch
and scale.

`python -m bench guard` has options of its own (`--help`).

`cpu`, `gpu`, `memory`, `switch` and `scale` set ours beside rivals, for hours; `--quick` shows in minutes that they
work. `--subject` and `--rival` take one thing, or one rival, at a time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from bench import cpu, cpu_cells, gpu, guard, load, memory, promise, sampling, scale, switch, tfmq, trdq, tune, video
from bench.cpu_cells import Size

BENCHES: dict[str, Callable[[], None]] = {
    "load": load.run,
    "tfmq": tfmq.run,
    "trdq": trdq.run,
    "tune": tune.run,
    "promise": promise.run,
    "sampling": sampling.run,
    "video": video.run,
}
Beside = tuple[Callable[[Size], None], Size, Size]
BESIDE_RIVALS: dict[str, Beside] = {
    "gpu": (gpu.run, gpu.FULL, gpu.QUICK),
    "cpu": (cpu.run, cpu_cells.FULL, cpu_cells.QUICK),
    "memory": (memory.run, memory.FULL, memory.QUICK),
    "switch": (switch.run, switch.FULL, switch.QUICK),
    "scale": (scale.run, scale.FULL, scale.QUICK),
}
"""Name to what runs it, how much it measures, and how much where it is to be quick."""

SHORT = ["load"]
"""Those that take minutes, not hours."""


def main() -> None:
    """Run the named benches, those that take minutes when none is named."""
    if sys.argv[1:2] == ["guard"]:
        raise SystemExit(guard.main(sys.argv[2:]))
    options = argparse.ArgumentParser(description=__doc__)
    names = (*BENCHES, *BESIDE_RIVALS)
    options.add_argument("names", nargs="*", metavar="bench", help=f"of {', '.join(names)}; by default {SHORT[0]}")
    options.add_argument("--quick", action="store_true", help="small models: shows that it works, numbers say nothing")
    options.add_argument("--subject", action="append", help="measure this alone; may be given several times")
    options.add_argument("--rival", action="append", help="of these rivals alone; may be given several times")
    options.add_argument("--threads", type=int, default=0, help="of each rival; by default all cores")
    options.add_argument("--root", type=Path, default=cpu_cells.WORK, help="where what is made and measured is kept")
    told = options.parse_args()
    chosen = told.names or SHORT
    unknown = sorted(set(chosen) - set(names))
    if unknown:
        options.error(f"no bench {', '.join(unknown)}; there are: {', '.join(names)}")
    for name in chosen:
        if name in BENCHES:
            BENCHES[name]()
        else:
            run, full, quick = BESIDE_RIVALS[name]
            run(_asked(quick if told.quick else full, told))


def _asked(size: Size, told: argparse.Namespace) -> Size:
    subjects, rivals = tuple(told.subject or size.subjects), tuple(told.rival or size.rivals)
    return replace(size, subjects=subjects, rivals=rivals, threads=told.threads, root=told.root)


if __name__ == "__main__":
    main()
