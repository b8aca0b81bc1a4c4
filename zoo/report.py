"""`python -m zoo.report`: every shipped artifact held against float on a few unseen prompts: docs/results/fidelity.md.

Row by row: what was measured of the same artifact on as many prompts is kept, so a run that is killed goes on where it
was, and one after a build measures what is new. Must not build anything.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.progress import Progress

import quant
from pipelines.calibrate import Progress as Tell
from pipelines.denoiser import Denoiser
from pipelines.features import temporal_features
from pipelines.load import quiet
from pipelines.quantized import load_profile
from zoo.build import SHIPPED, ZOO, Means, Model, card_of, measure, model_defaults, open_model
from zoo.worlds import world_of

OUT = Path("docs/results/fidelity.json")
PROMPTS = 8

Row = dict[str, Any]
Column = tuple[str, Callable[[Row], str]]

MEASURED = (
    *("psnr_db", "identical", "ssim", "ms_ssim", "ms_ssim_scales", "latent_error", "trajectory_distance"),
    *(
        "trajectory",
        "temporal_cosine_worst",
        "temporal_cosine_mean",
        "mismatch_rate",
        "prompt_accuracy",
        "float_prompt_accuracy",
    ),
)


def key_of(artifact: Path, count: int) -> str:
    """Equal for measurements that need not be made again."""
    manifest = json.loads((artifact / quant.MANIFEST).read_text(encoding="utf-8"))
    facts = [count, manifest["files"], manifest["model_sha256"], manifest["recipe"], manifest.get("guidance")]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def of_build(artifact: Path) -> Row | None:
    """What an artifact's manifest says of its build's larger measurement; not picture by picture."""
    told = quant.read_manifest(artifact).fidelity
    return told and {name: value for name, value in told.items() if name != "spread"}


def measure_row(model: Model, artifact: Path, count: int, cache: Path, tell: Tell) -> Row:
    """One artifact against float on unseen prompts."""
    card = card_of(artifact)
    components, defaults = model.components, model_defaults(model.components.folder)
    features = temporal_features(components, [card], world_of(defaults).asked(1)[0].prompt, defaults)
    denoisers: dict[str, Denoiser] = {"float": model.truth, card.name: load_profile(card, components, Means(cache))}
    found = {one.profile: one.as_json() for one in measure(components, denoisers, count, features, tell)}[card.name]
    facts = {"model": card.model, "profile": card.name, "backend": card.backend, "key": key_of(artifact, count)}
    bits = {"weight_bits": card.weight_bits, "activation_bits": card.activation_bits}
    sizes = {"weights_bytes": card.weights_bytes, "float_weights_bytes": card.float_weights_bytes}
    saving = None if card.guidance is None else card.guidance.saving
    return {
        **facts, **bits, **sizes, "prompts": count, "guidance_saving": saving,
        **{name: found[name] for name in MEASURED},
    }  # fmt: skip


def artifacts() -> list[tuple[str, Path]]:
    """(model, folder) of everything that is shipped."""
    return [(model, ZOO / "artifacts" / model / name) for model, names in SHIPPED.items() for name in names]


def run(wanted: Sequence[tuple[str, Path]], count: int, out: Path, cache: Path) -> list[Row]:
    """Measures what is not kept yet, and writes JSON and Markdown after every row."""
    quiet()
    kept = {(row["model"], row["profile"]): row for row in _read(out)}
    rows: dict[tuple[str, str], Row] = {}
    opened: dict[str, Model] = {}
    with Progress() as bar:
        line, below = bar.add_task("artifacts", total=len(wanted)), bar.add_task("comparing", total=None)

        def tell(what: str, done: int, total: int) -> None:
            bar.update(below, description=what, completed=done, total=total)

        for model, folder in wanted:
            bar.update(line, description=f"{model}/{folder.name}")
            row = kept.get((model, folder.name))
            if row is None or row["key"] != key_of(folder, count):
                if model not in opened:
                    opened = {model: open_model(model)}
                row = measure_row(opened[model], folder, count, cache, tell)
            rows[model, folder.name] = row | {"build": of_build(folder)}
            _write(out, kept | rows)
            bar.advance(line)
    return list(rows.values())


def _read(out: Path) -> list[Row]:
    if not out.is_file():
        return []
    rows: list[Row] = json.loads(out.read_text(encoding="utf-8"))["rows"]
    return rows


def _write(out: Path, rows: Mapping[tuple[str, str], Row]) -> None:
    """JSON and Markdown, each whole or as it was; artifacts that are gone are left out."""
    known = {(model, folder.name) for model, folder in artifacts()}
    told = [row for key, row in sorted(rows.items()) if key in known]
    texts = {
        out: json.dumps({"format": 1, "rows": told}, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        out.with_suffix(".md"): markdown(told),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        aside = path.with_name(f".{path.name}")
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)


def _psnr(row: Row) -> str:
    level = "identical" if row["psnr_db"] is None else f"{row['psnr_db']:.1f}"
    return level + (f" ({row['identical']} identical)" if row["identical"] else "")


def _or_dash(value: float | None, form: str, times: float = 1) -> str:
    return "-" if value is None else format(times * value, form)


def _built(row: Row, name: str, form: str, times: float = 1) -> str:
    return _or_dash((row["build"] or {}).get(name), form, times)


def _speed(row: Row) -> str:
    build = row["build"] or {}
    own, beside = build.get("seconds"), build.get("float_seconds")
    return f"{beside / own:.1f}x" if own and beside else "-"


COLUMNS: tuple[Column, ...] = (
    ("profile", lambda row: f"`{row['profile']}`"),
    ("bits", lambda row: f"{row['weight_bits']}/{row['activation_bits']}"),
    ("weights MB", lambda row: f"{row['weights_bytes'] / 1e6:.1f}"),
    ("of float", lambda row: f"{row['weights_bytes'] / row['float_weights_bytes']:.2f}"),
    ("PSNR dB", _psnr),
    ("SSIM", lambda row: f"{row['ssim']:.4f}"),
    ("MS-SSIM", lambda row: f"{row['ms_ssim']:.4f}"),
    ("latent error %", lambda row: f"{100 * row['latent_error']:.2f}"),
    ("trajectory %", lambda row: f"{100 * row['trajectory_distance']:.2f}"),
    ("temporal cosine, worst", lambda row: _or_dash(row["temporal_cosine_worst"], ".5f")),
    ("mismatch %", lambda row: _or_dash(row["mismatch_rate"], ".1f", 100)),
    ("guidance left out %", lambda row: _or_dash(row["guidance_saving"], ".0f", 100)),
    ("build: prompts", lambda row: _built(row, "prompts", "d")),
    ("PSNR dB at build", lambda row: _built(row, "psnr_db", ".1f")),
    ("prompts right % at build (float)", lambda row: f"{_built(row, 'prompt_accuracy', '.1f', 100)} "
     f"({_built(row, 'float_prompt_accuracy', '.1f', 100)})"),
    ("times float's speed at build", _speed),
)  # fmt: skip

HEAD = """# Fidelity of every shipped artifact

Made by `python -m zoo.report` (resumes row by row); numbers, also by step, in `{json}`. Each artifact and float drew
the same {prompts} unseen prompts from the same seeds and noise, at the model's default settings. PSNR is a mean over
the pictures that are not identical with float's. MS-SSIM has as many of its five scales as fit the size: {scales}. What
`python -m zoo.build` measured when it made the artifact, on more prompts, stands beside it.
"""


def markdown(rows: Sequence[Row]) -> str:
    """The page."""
    prompts = " or ".join(str(count) for count in sorted({row["prompts"] for row in rows}))
    scales = " or ".join(str(count) for count in sorted({row["ms_ssim_scales"] for row in rows}))
    lines = [HEAD.format(prompts=prompts, scales=scales, json=OUT.name)]
    for model in dict.fromkeys(row["model"] for row in rows):
        lines += [f"## {model}", "", "| " + " | ".join(title for title, _ in COLUMNS) + " |"]
        lines.append("|" + "---|" * len(COLUMNS))
        mine = [row for row in rows if row["model"] == model]
        lines += ["| " + " | ".join(cell(row) for _, cell in COLUMNS) + " |" for row in mine]
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Measure what is new."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--model", choices=SHIPPED, help="by default all")
    options.add_argument("--count", type=int, default=PROMPTS, help="unseen prompts")
    options.add_argument("--out", type=Path, default=OUT)
    options.add_argument("--cache", type=Path, default=Path("build/cache"))
    choice = options.parse_args()
    wanted = [(model, folder) for model, folder in artifacts() if choice.model in (None, model)]
    for row in run(wanted, choice.count, choice.out, choice.cache):
        print(f"{row['model']}/{row['profile']}: {_psnr(row)} dB")


if __name__ == "__main__":
    main()
