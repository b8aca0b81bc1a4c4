"""`python -m bench [load] [tfmq] [trdq]`: runs the benches and keeps their results under bench/results/."""

from __future__ import annotations

import argparse

from bench import load, tfmq, trdq

BENCHES = {"load": load.run, "tfmq": tfmq.run, "trdq": trdq.run}
SHORT = ["load"]
"""Those that take minutes, not hours."""


def main() -> None:
    """Run the named benches, those that take minutes when none is named."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument(
        "names", nargs="*", metavar="bench", help=f"of {', '.join(BENCHES)}; by default {', '.join(SHORT)}"
    )
    chosen = options.parse_args().names or SHORT
    unknown = sorted(set(chosen) - set(BENCHES))
    if unknown:
        options.error(f"no bench {', '.join(unknown)}; there are: {', '.join(BENCHES)}")
    for name in chosen:
        BENCHES[name]()


if __name__ == "__main__":
    main()
