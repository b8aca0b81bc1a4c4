"""`python -m service`: the gateway as a process, set up by HALFTONE_* variables. Refuses to start with a clear line."""

from __future__ import annotations

import asyncio
import logging
import sys

from jobs.errors import HalftoneError
from service.server import serve
from service.settings import Settings

log = logging.getLogger("halftone.service")


def main() -> int:
    """Run until a signal comes; the exit status is 0 then, and 2 when it cannot start."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    try:
        asyncio.run(serve(Settings.load()))
    except HalftoneError as fault:
        log.error("cannot start: %s", fault.message)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
