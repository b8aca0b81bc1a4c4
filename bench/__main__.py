"""`python -m bench [load]`: runs the benches and keeps their results under bench/results/."""

from __future__ import annotations

import argparse

from bench import load

BENCHES = {"load": load.run}


def main() -> None:
    """Run the named benches, all when none is named."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("names", nargs="*", metavar="bench", help=f"of {', '.join(BENCHES)}; all when none is named")
    chosen = options.parse_args().names or list(BENCHES)
    unknown = sorted(set(chosen) - set(BENCHES))
    if unknown:
        options.error(f"no bench {', '.join(unknown)}; there are: {', '.join(BENCHES)}")
    for name in chosen:
        BENCHES[name]()


if __name__ == "__main__":
    main()
