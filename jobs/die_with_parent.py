"""Run as a script: becomes another program that ends when its parent does. Knows nothing else of Halftone.

`python -I -S die_with_parent.py PARENT_PID PROGRAM ARGS...`. The kernel sends SIGTERM when the thread that started us
ends, even by kill -9. Doing this here, after the fork, is safe in a parent with threads, as code between fork and exec
is not. Linux only; elsewhere the program just runs.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(parent: int, program: list[str]) -> None:
    """Tie this process to its parent, then become `program`; exits with 1 when the parent is gone already."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            sys.exit(1)
    os.execv(program[0], program)  # noqa: S606  # a fixed program, no shell


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
