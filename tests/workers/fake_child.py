"""A device child for tests of the supervisor: speaks the channel, obeys the prompt, makes one-byte pictures.

Prompts: `sleep S`, `steps N S` (N steps of S seconds), `crash`, `segv`, `exit0`, `hang` (ignores cancel), `mute` (no
sign of life), `deaf` (closes the channel), `garbage`, `fail`, anything else finishes at once. Knows no torch.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

from jobs.files import ResultStore
from jobs.job import Costs, Failure, JobResult, ResultFile, Used
from workers.channel import ChildEnd
from workers.messages import (
    Alive,
    BatchRan,
    Cancel,
    Canceled,
    Failed,
    Finished,
    Loaded,
    Memory,
    Previewed,
    Ready,
    Run,
    StageTook,
    Started,
    Stepped,
    Stop,
)

canceled: set[tuple[str, str]] = set()
mute = threading.Event()


def result_of(run: Run) -> JobResult:
    data = run.request.prompt.encode()
    store = ResultStore(run.results_dir, 3600)
    file_id, path = store.write(run.job_id, run.token, 0, data, "png")
    file = ResultFile(
        id=file_id,
        mime="image/png",
        size_bytes=path.stat().st_size,
        sha256=hashlib.sha256(data).hexdigest(),
        width=8,
        height=8,
        seed=run.request.seed,
    )
    used = Used(
        model=run.request.model,
        profile=run.request.profile,
        backend="null",
        seed=run.request.seed,
        num_inference_steps=run.request.num_inference_steps,
        guidance_scale=run.request.guidance_scale,
        width=8,
        height=8,
        scheduler="none",
    )
    return JobResult(files=(file,), used=used, costs=Costs(queue_seconds=run.queue_seconds))


def sleep(end: ChildEnd, run: Run, words: list[str]) -> bool:
    """Returns whether the run was canceled."""
    steps, seconds = (int(words[1]), float(words[2])) if words[0] == "steps" else (1, float(words[1]))
    for step in range(1, steps + 1):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if (run.job_id, run.token) in canceled:
                return True
            time.sleep(min(0.005, seconds))
        end.send(Stepped(job_id=run.job_id, token=run.token, step=step, total=steps))
        end.send(Previewed(job_id=run.job_id, token=run.token, index=step - 1, mime="image/png", b64="QQ=="))
    return False


def misbehave(end: ChildEnd, word: str) -> None:
    deeds: dict[str, Callable[[], None]] = {
        "crash": lambda: os._exit(3),
        "segv": lambda: os.kill(os.getpid(), signal.SIGSEGV),
        "exit0": lambda: os._exit(0),
        "hang": lambda: None,
        "mute": lambda: mute.set(),
        "deaf": lambda: end._sock.shutdown(2),
        "garbage": lambda: end._sock.sendall(b"not json\n"),
    }
    if word in deeds:
        deeds[word]()
        time.sleep(1000)


def work(end: ChildEnd, run: Run) -> None:
    ids = {"job_id": run.job_id, "token": run.token}
    words = run.request.prompt.split()
    end.send(Started(**ids))
    misbehave(end, words[0])
    if words[0] == "fail":
        end.send(Failed(**ids, failure=Failure(code="generation_failed", message="as you wished")))
    elif words[0] in {"sleep", "steps"} and sleep(end, run, words):
        end.send(Canceled(**ids))
    else:
        labels = {"model": run.request.model, "profile": run.request.profile, "backend": "null"}
        end.send(BatchRan(**labels, rows=2, jobs=1, seconds=0.01))
        end.send(StageTook(**labels, stage="denoise", seconds=0.01))
        end.send(Finished(**ids, result=result_of(run)))


def beat(end: ChildEnd) -> None:
    while not mute.wait(0.1):
        end.send(Alive())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--never-ready", action="store_true")
    options = parser.parse_args()
    end = ChildEnd.from_fd(options.fd)
    if options.never_ready:
        time.sleep(1000)
    threading.Thread(target=beat, args=(end,), daemon=True).start()
    end.send(Ready(device="fake", profiles={"null": ("float",)}))
    end.send(Loaded(model="null", profile="float", backend="null", seconds=0.5, weights_bytes=123))
    end.send(Memory(rss_bytes=1000, peak_bytes=2000, device_bytes=0))
    for message in end:
        if isinstance(message, Run):
            threading.Thread(target=work, args=(end, message), daemon=True).start()
        elif isinstance(message, Cancel):
            canceled.add((message.job_id, message.token))
        elif isinstance(message, Stop):
            sys.exit(0)


if __name__ == "__main__":
    main()
