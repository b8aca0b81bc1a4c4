"""How the command line speaks: tables for people, JSON for scripts, faults on stderr. Knows no command and no HTTP."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from halftone.views import JobView, ModelView, ProfileView, UsedView
from halftone.wire import Event
from jobs.errors import HalftoneError
from jobs.job import Costs, Used

PIPE_WIDTH = 240
NOTHING = "-"
"""The cell of what was not measured."""


def plain(value: Any) -> Any:
    """Models and tuples as what JSON knows."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def emit_json(value: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def emit_json_line(value: Any) -> None:
    """One JSON document on one line of stdout, at once."""
    sys.stdout.write(json.dumps(plain(value), ensure_ascii=False, allow_nan=False) + "\n")
    sys.stdout.flush()


def emit_line(text: str) -> None:
    """One line on stdout, as it is."""
    sys.stdout.write(text + "\n")


def note(text: str) -> None:
    """One line on stderr, for a person."""
    sys.stderr.write(text + "\n")


def complain(fault: HalftoneError, *, as_json: bool) -> None:
    """A fault on stderr."""
    if as_json:
        body = {"error": {"code": fault.code, "message": fault.message, "param": fault.param}}
        note(json.dumps(body))
    else:
        note(f"halftone: {fault.message}" + (f" ({fault.code})" if fault.code not in fault.message else ""))


def or_dash(value: float | None, form: str, times: float = 1) -> str:
    """A number's cell, such as `.1f` of 100 times a share."""
    return NOTHING if value is None else format(times * value, form)


def emit_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on stdout. Cells are text, never markup: they may come from prompts."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        right = column.endswith(("MB", "KB", "dB", "%", "bits", "seconds", "parameters"))
        table.add_column(column, justify="right" if right else "left", no_wrap=column != "prompt", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    # in a pipe there is no width to keep to, and ids must stay whole
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else PIPE_WIDTH).print(table)


def progress_bar() -> Progress:
    """A bar of denoising steps on stderr, so that stdout stays for results."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(file=sys.stderr), transient=True, disable=not sys.stderr.isatty())


def model_row(model: ModelView) -> list[str]:
    """A model's cells under MODEL_COLUMNS."""
    size = f"{model.defaults.width}x{model.defaults.height}"
    limit = f"{model.limits.max_side} px, {model.limits.max_steps} steps"
    return [model.id, model.pipeline, size, str(model.defaults.num_inference_steps), limit, ", ".join(model.profiles)]


MODEL_COLUMNS = ("model", "pipeline", "size", "steps", "limits", "profiles")


def profile_row(card: ProfileView) -> list[str]:
    """A profile's cells under PROFILE_COLUMNS."""
    share = 100 * card.weights_bytes / max(1, card.float_weights_bytes)
    bits = f"{card.weight_bits}/{card.activation_bits}"
    psnr = NOTHING if card.fidelity is None else _psnr(card.fidelity.psnr_db)
    right = or_dash(card.fidelity.prompt_accuracy if card.fidelity else None, ".1f", 100)
    size = [f"{card.weights_bytes / 1e6:.1f}", f"{share:.0f}"]
    left_out = or_dash(card.guidance.saving if card.guidance else None, ".0f", 100)
    best = NOTHING if card.pareto is None else ", ".join(card.pareto)
    return [card.model, card.name, card.backend, bits, *size, psnr, right, left_out, speed_up(card), best]


def _psnr(value: float | None) -> str:
    """A mean PSNR; without one all pictures are identical with float's."""
    return "identical" if value is None else f"{value:.1f}"


PROFILE_COLUMNS = (
    *("model", "profile", "backend", "bits", "weights MB", "of float %", "PSNR dB", "prompt accuracy %"),
    *("guidance left out %", "times float's speed", "not beaten in"),
)


def guidance_lines(card: ProfileView) -> list[str]:
    """A profile's guidance plan, for a person; nothing where it has none."""
    plan = card.guidance
    if plan is None:
        return []
    low, high = plan.guidance
    errors = {"expected": plan.predicted_error, "measured": plan.measured_error}
    told = " and ".join(f"{100 * error:.2f}% {name}" for name, error in errors.items() if error is not None)
    return [
        f"{card.name} of {card.model} runs {plan.steps} (B: both branches, S: sharing, R: reuse, N: no guidance)",
        f"  {100 * plan.saving:.1f}% of multiply-adds left out, error of the final latents {told or 'not known'}, "
        f"for guidance {low:g} to {high:g}",
    ]


def precision_lines(card: ProfileView) -> list[str]:
    """Which steps a profile runs by more exact weights, for a person; nothing where it has none."""
    steps = card.precision
    if steps is None:
        return []
    by = "the float model" if steps.form == "float" else "8-bit weights"
    return [
        f"{card.name} of {card.model} runs the first {steps.first_steps} and the last {steps.last_steps} of "
        f"{steps.total_steps} steps by {by}, {steps.weights_bytes / 1e6:.1f} of its "
        f"{card.weights_bytes / 1e6:.1f} MB"
    ]


def speed_up(card: ProfileView) -> str:
    """How many times faster than float a profile drew, where both were timed in one run."""
    found = card.fidelity
    if found is None or not found.seconds or not found.float_seconds:
        return NOTHING
    return f"{found.float_seconds / found.seconds:.1f}"


def job_row(job: JobView) -> list[str]:
    """A job's cells under JOB_COLUMNS."""
    made = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.created_at))
    steps = f"{job.progress.step}/{job.progress.total}" if job.progress.total else NOTHING
    prompts = job.request.get("prompts") or [job.request.get("prompt", "")]  # of a comparison there may be several
    return [job.id, str(job.status), job.profile, steps, made, shortened("; ".join(map(str, prompts)))]


JOB_COLUMNS = ("job", "status", "profile", "steps", "submitted", "prompt")


def shortened(text: str, limit: int = 60) -> str:
    """The text on one line, cut at `limit` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def job_lines(job: JobView) -> list[str]:
    """A job in full, for a person."""
    lines = [f"{name:<9} {value}" for name, value in zip(JOB_COLUMNS, job_row(job), strict=True)]
    if job.queue_position is not None:
        lines.append(f"ahead     {job.queue_position}")
    if job.eta_seconds is not None:
        lines.append(f"done in   about {job.eta_seconds:.0f} s")
    if job.error is not None:
        lines.append(f"error     {job.error.code}: {job.error.message}")
    if job.result is not None:
        lines += [f"file      {file.url} (seed {file.seed})" for file in job.result.files]
        lines += [f"used      {used_line(job.result.used)}", f"took      {costs_line(job.result.costs)}"]
        lines += [f"note      {notice.message}" for notice in job.result.notices]
    return lines


def used_line(used: Used | UsedView) -> str:
    """What a job was run with, in a line."""
    frames = f", {used.num_frames} frames at {used.fps} fps" if used.num_frames is not None else ""
    return (
        f"{used.model} {used.profile} ({used.backend}), seed {used.seed}, {used.num_inference_steps} steps, "
        f"guidance {used.guidance_scale:g}, {used.width}x{used.height}{frames}"
    )


def costs_line(costs: Costs) -> str:
    """What a job cost, in a line."""
    stages = {
        "queue": costs.queue_seconds,
        "load": costs.load_seconds,
        "text": costs.text_encode_seconds,
        "denoise": costs.denoise_seconds,
        "decode": costs.decode_seconds,
        "encode": costs.encode_seconds,
    }
    return ", ".join(f"{name} {seconds:.2f} s" for name, seconds in stages.items() if seconds >= 0.005)


def event_line(event: Event) -> str:
    """An event, for a person; pictures in previews are left out."""
    data = {name: value for name, value in event.data.items() if name not in {"b64", "b64_json"}}
    return f"{event.type:<10} {json.dumps(data, ensure_ascii=False)}"
