"""A comparison's report as one self-contained HTML page: pictures and curves inside, no script, nothing to fetch.

Every text of a user's is escaped; the page's policy allows its own style by hash and data: pictures, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable, Sequence
from html import escape

from jobs.errors import Expired, NotFound
from jobs.files import ResultStore
from jobs.quality import Compared, ProfileReport, Report, Shown
from service.report_svg import curves
from service.reports import ReportAnswer
from service.sending import MIME

Embed = Callable[[str], str | None]
"""A file's id to its data: address; None where it cannot be shown."""

MOST_BYTES = 48 * 1024 * 1024
"""Files that a page holds, in bytes; what goes beyond is linked instead."""

STYLE = """
:root{color-scheme:light dark;--line:#8886}
:root{--c0:#1f6fb4;--c1:#d9622b;--c2:#2f8f5b;--c3:#8a52a8;--c4:#b8960c;--c5:#c23b6b;
--c6:#4c9aa8;--c7:#6b6b6b}
body{font:16px/1.45 system-ui,sans-serif;margin:0 auto;max-width:80rem;padding:1rem}
h1{font-size:1.5rem}h2{font-size:1.2rem;margin-top:2rem}h3{font-size:1rem}
a:focus-visible,summary:focus-visible,.scroll:focus-visible{outline:3px solid var(--c0);outline-offset:2px}
.skip{position:absolute;left:-999rem}.skip:focus{position:static}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{border:1px solid var(--line);padding:.25rem .5rem;text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left}
.passed{color:#1a7f37;font-weight:bold}.failed{color:#cf222e;font-weight:bold}.undecided{color:#9a6700;font-weight:bold}
.row{display:flex;flex-wrap:wrap;gap:1rem}.row figure{margin:0;max-width:16rem}
.row img,.row video{width:16rem;max-width:100%;image-rendering:pixelated;border:1px solid var(--line)}
figcaption{font-size:.85rem}.missing{border:1px dashed var(--line);padding:2rem 1rem;width:14rem}
.plot{margin:1rem 0;max-width:42rem}.plot>svg{width:100%;height:auto}
.plots{display:flex;flex-wrap:wrap;gap:1rem}.plots .plot{flex:1 1 24rem}
path{fill:none;stroke-width:2}circle{stroke:none}text{font:12px system-ui,sans-serif;fill:currentColor}
.axis{stroke:currentColor;stroke-width:1}.grid{stroke:var(--line);stroke-width:1}
.end{text-anchor:end}.middle{text-anchor:middle}.dashed{stroke-dasharray:5 3}
.key{width:1.5rem;height:.5rem}.keys{list-style:none;display:flex;flex-wrap:wrap;gap:.25rem 1rem;padding:0}
.c0{stroke:var(--c0)}.c1{stroke:var(--c1)}.c2{stroke:var(--c2)}.c3{stroke:var(--c3)}
.c4{stroke:var(--c4)}.c5{stroke:var(--c5)}.c6{stroke:var(--c6)}.c7{stroke:var(--c7)}
circle.c0{fill:var(--c0)}circle.c1{fill:var(--c1)}circle.c2{fill:var(--c2)}circle.c3{fill:var(--c3)}
circle.c4{fill:var(--c4)}circle.c5{fill:var(--c5)}circle.c6{fill:var(--c6)}circle.c7{fill:var(--c7)}
""".strip()
_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
_INSIDE = f"default-src 'none'; img-src data:; media-src data:; style-src 'sha256-{_HASH}'; base-uri 'none'"
POLICY = f"{_INSIDE}; form-action 'none'; frame-ancestors 'none'"
"""For the answer's header; the page carries the same for those who save it, without what a page cannot say."""

Column = tuple[str, Callable[[ProfileReport], str]]


def embedder(store: ResultStore, most: int = MOST_BYTES) -> Embed:
    """Reads files of a store until `most` bytes are on the page."""
    left = most

    def embed(file_id: str) -> str | None:
        nonlocal left
        try:
            with store.open(file_id) as file:
                data = file.read(left + 1)
        except (Expired, NotFound):
            return None
        if len(data) > left:
            return None
        left -= len(data)
        kind = MIME[file_id.rpartition(".")[2]]
        return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"

    return embed


def page(answer: ReportAnswer, embed: Embed) -> str:
    """The whole page of a comparison that has its report.

    Raises:
        ValueError: it has none.
    """
    report = answer.report
    if report is None:
        raise ValueError(f"comparison {answer.id} has no report")
    title = f"{report.model}: {', '.join(answer.profiles)} against float"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_INSIDE)}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head><body>"
        f'<a class="skip" href="#pictures">To the pictures</a><main><h1>{escape(title)}</h1>'
        f"{_about(report)}<h2>Profiles</h2>{_table(report)}{_verdicts(report)}"
        f"<h2>Step by step</h2>{_plots(report)}"
        f'<h2 id="pictures">Pictures</h2>{_pictures(report, embed)}</main></body></html>\n'
    )


def _about(report: Report) -> str:
    at = report.settings
    frames = f", {at.num_frames} frames at {at.fps} a second" if at.num_frames else ""
    lines = [
        f"{at.width}x{at.height} pixels{frames}, {at.num_inference_steps} steps of {at.scheduler}, guidance "
        f"{at.guidance_scale:g}, seeds {', '.join(map(str, at.seeds))}. The same initial noise through float and each.",
        *([f"Negative prompt: {at.negative_prompt}"] if at.negative_prompt else []),
        *(notice.message for notice in report.notices),
        *(f"Not measured: {name.replace('_', ' ')}: {why}." for name, why in report.not_measured.items()),
    ]
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


def _number(value: float | None, form: str, times: float = 1) -> str:
    return "–" if value is None else format(times * value, form)


def _psnr(one: ProfileReport) -> str:
    pictures = len(one.pictures)
    if one.psnr_db is None:
        return f"identical ({one.identical} of {pictures})"
    return f"{one.psnr_db:.2f}" + (f" (of {pictures - one.identical} that differ)" if one.identical else "")


COLUMNS: tuple[Column, ...] = (
    ("PSNR dB", _psnr),
    ("SSIM", lambda one: f"{one.ssim:.4f}"),
    ("MS-SSIM", lambda one: f"{one.ms_ssim:.4f}"),
    ("LPIPS", lambda one: _number(one.lpips, ".4f")),
    ("CLIP score", lambda one: _number(one.clip_score, ".2f")),
    ("latent error %", lambda one: f"{100 * one.latent_error:.2f}"),
    ("trajectory %", lambda one: f"{100 * one.trajectory_distance:.2f}"),
    ("temporal cosine, worst", lambda one: _number(one.temporal_cosine_worst, ".5f")),
    ("mismatch %", lambda one: _number(one.mismatch_rate, ".1f", 100)),
    ("prompts right %", lambda one: _number(one.prompt_accuracy, ".0f", 100)),
    ("change error %", lambda one: _number(one.change_error, ".2f", 100)),
    ("flicker, float's %", lambda one: f"{_number(one.flicker, '.2f', 100)}, {_number(one.float_flicker, '.2f', 100)}"),
    ("seconds", lambda one: f"{one.spent.seconds:.3g}"),
    ("speed-up", lambda one: f"{one.speedup:.2f}x"),
    ("weights MB", lambda one: f"{one.spent.weights_bytes / 1e6:.1f}"),
    ("peak MB", lambda one: f"{one.spent.peak_bytes / 1e6:.0f}"),
    ("activations MB", lambda one: f"{one.spent.activation_bytes / 1e6:.0f}"),
)
_EMPTY = {"–", "–, –"}


def _table(report: Report) -> str:
    """A row for each profile, without columns in which nothing was measured; then what float took."""
    rows = [[cell(one) for _, cell in COLUMNS] for one in report.profiles]
    told = [place for place in range(len(COLUMNS)) if any(row[place] not in _EMPTY for row in rows)]
    heads = "".join(f'<th scope="col">{escape(COLUMNS[place][0])}</th>' for place in told)
    body = "".join(
        f'<tr><th scope="row">{escape(one.profile)}</th><td class="{_class(one.verdict)}">{escape(one.verdict)}</td>'
        + "".join(f"<td>{escape(row[place])}</td>" for place in told)
        + "</tr>"
        for one, row in zip(report.profiles, rows, strict=True)
    )
    spent = report.reference.spent
    accuracy = _number(report.reference.prompt_accuracy, ".0f", 100)
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Profiles against float"><table>'
        f'<thead><tr><th scope="col">profile</th><th scope="col">verdict</th>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
        f"<p>float: {spent.seconds:.3g} seconds a picture, {spent.weights_bytes / 1e6:.1f} MB of weights, "
        f"{spent.peak_bytes / 1e6:.0f} MB at its peak; prompts right: {accuracy} %.</p>"
    )


def _class(verdict: str) -> str:
    return verdict if verdict in ("passed", "failed", "undecided") else ""


def _verdicts(report: Report) -> str:
    bounds = {name: value for name, value in report.thresholds.model_dump().items() if value is not None}
    if not bounds:
        return "<p>No thresholds were given, so nothing is judged.</p>"
    told = ", ".join(f"{name} {value:g}" for name, value in bounds.items())
    parts = [f"<p>Thresholds: {escape(told)}. What is of pictures must hold for every one.</p>"]
    for one in report.profiles:
        if one.reasons:
            reasons = "".join(f"<li>{escape(reason)}</li>" for reason in one.reasons)
            summary = f"<summary>{escape(one.profile)}: {escape(one.verdict)}, why</summary>"
            parts.append(f"<details>{summary}<ul>{reasons}</ul></details>")
    return "".join(parts)


def _plots(report: Report) -> str:
    def series(pick: Callable[[ProfileReport], Sequence[float]], times: float = 1) -> dict[str, list[float]]:
        found = {one.profile: [times * value for value in pick(one)] for one in report.profiles}
        return {name: values for name, values in found.items() if values}

    plots = [
        curves("Distance of the latents from float's", "relative L2, %", series(lambda one: one.trajectory, 100)),
        curves(
            "Temporal features: worst cosine with float's",
            "cosine",
            series(lambda one: one.temporal_cosine_worst_by_step),
        ),
        curves(
            "Temporal features nearer to another step", "% of modules", series(lambda one: one.mismatch_by_step, 100)
        ),
    ]
    return f'<div class="plots">{"".join(plots)}</div>'


def _pictures(report: Report, embed: Embed) -> str:
    parts = []
    for place, truth in enumerate(report.reference.pictures):
        figures = [_figure("float", truth.file, truth.url, embed, _right(truth))]
        for one in report.profiles:
            figures += _pair(one.profile, one.pictures[place], embed)
        heading = f"{escape(truth.prompt)} <small>(seed {truth.seed})</small>"
        parts.append(f'<section><h3>{heading}</h3><div class="row">{"".join(figures)}</div></section>')
    return "".join(parts)


def _pair(profile: str, picture: Compared, embed: Embed) -> Iterable[str]:
    """A profile's picture, and its difference from float's."""
    scores = picture.scores
    level = "identical" if scores.psnr_db is None else f"{scores.psnr_db:.2f} dB"
    about = [
        f"{level}, SSIM {scores.ssim:.4f}",
        f"latent error {100 * scores.latent_error:.2f}%",
        f"{picture.seconds:.3g} s",
        *_right(picture),
        *([picture.verdict] if picture.verdict != "not judged" else []),
        *picture.reasons,
    ]
    yield _figure(profile, picture.file, picture.url, embed, about)
    name = f"{profile}, difference x{picture.difference_scale}"
    yield _figure(name, picture.difference, picture.difference_url, embed, [])


def _right(picture: Shown) -> list[str]:
    return [] if picture.right is None else ["shows its prompt" if picture.right else "does not show its prompt"]


def _figure(name: str, file: str, url: str | None, embed: Embed, about: Sequence[str]) -> str:
    data = embed(file)
    if data is None:
        shown = f'<p class="missing">Not on this page: <a href="{escape(url or file)}">{escape(file)}</a></p>'
    elif data.startswith("data:video/"):
        shown = f'<video src="{data}" controls loop muted playsinline aria-label="{escape(name)}"></video>'
    else:
        shown = f'<img src="{data}" alt="{escape(name)}">'
    text = "<br>".join(map(escape, about))
    return f"<figure>{shown}<figcaption><strong>{escape(name)}</strong><br>{text}</figcaption></figure>"
