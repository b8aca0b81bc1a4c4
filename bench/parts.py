"""Results in parts: a run of some subjects keeps what earlier runs wrote of others. Must not measure anything."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from bench import numbers
from bench.table import Found

SAME: Final = ("packages", "threads", "rounds", "warm")
"""Facts that must be as they were; so must the processor and the number of cores."""


def with_earlier(name: str, facts: Found, found: Sequence[Found], whole: Sequence[str]) -> list[Found]:
    """What was found, dated, in the order of the subjects of a whole run; of those that this run left out, what is kept
    under that name, if its facts are the same. A run of other subjects, as a quick one, stands alone.
    """
    dated = {one["subject"]: {**one, "date": facts["machine"]["date"]} for one in found}
    if not set(dated) <= set(whole):
        return list(dated.values())
    told = {one["subject"]: one for one in _kept(name, facts)} | dated
    return [told[subject] for subject in whole if subject in told]


def _kept(name: str, facts: Found) -> list[Found]:
    file = numbers.RESULTS / f"{name}.json"
    if not file.is_file():
        return []
    earlier: Found = json.loads(file.read_text(encoding="utf-8"))
    subjects: list[Found] = earlier["subjects"]
    return subjects if _deciding(earlier) == _deciding(facts) else []


def _deciding(facts: Found) -> str:
    machine = {key: facts["machine"].get(key) for key in ("processor", "cores")}
    return json.dumps([machine, {key: facts.get(key) for key in SAME}], sort_keys=True)
