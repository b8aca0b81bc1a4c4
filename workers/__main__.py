"""`python -m workers`: one worker until SIGTERM or SIGINT. Wires parts together and decides nothing."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys

from jobs.errors import BadSettings, HalftoneError
from jobs.files import ResultStore
from jobs.queue import JobQueue
from jobs.redis_server import connect, resolve
from workers.metrics import Metrics
from workers.settings import WorkerSettings
from workers.supervisor import Supervisor


async def _work(settings: WorkerSettings) -> None:
    """Serve the queue until a signal; returns when all jobs in hand are settled or given back."""
    redis = connect(resolve(settings))
    metrics = Metrics()
    try:
        endpoint = metrics.serve(settings.metrics_host, settings.metrics_port)
    except OSError as error:
        where = f"{settings.metrics_host}:{settings.metrics_port}"
        raise BadSettings(f"metrics cannot be served at {where} ({error}); set HALFTONE_METRICS_PORT") from error
    logging.getLogger(__name__).info("metrics at http://%s:%d/metrics", settings.metrics_host, endpoint.port)
    try:
        store = ResultStore(settings.results_dir, settings.result_ttl_seconds)
        supervisor = Supervisor(JobQueue(redis, settings, settings.lanes), store, settings, metrics)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, supervisor.drain)
        await supervisor.run()
    finally:
        endpoint.stop()
        await redis.aclose()


def main() -> int:
    """Run the worker; 0 after a drain, 2 when it cannot start."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s worker %(levelname)s %(name)s: %(message)s")
    try:
        asyncio.run(_work(WorkerSettings.load()))
    except HalftoneError as error:
        logging.getLogger(__name__).critical("cannot start: %s", error.message)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
