"""What reports on layers have to say of temporal ones that were treated apart. Must not know any model."""

from __future__ import annotations

from quant.temporal.maintain import Maintained


def temporal_reports(maintained: Maintained) -> dict[str, dict[str, object]]:
    """What layer reports have to say of each temporal layer that was treated apart."""
    plan, told = maintained.plan, dict[str, dict[str, object]]()
    if plan is None:
        return told
    for name, layer in maintained.replacements.items():
        told[name] = {"bytes_after": sum(buffer.nbytes for buffer in layer.buffers()), "kept_float_because": None}
    for name, form in maintained.forms.items():
        grids = "float inputs" if form.input_bits is None else f"u{form.input_bits} per tensor"
        each = " and step" if form.kind == "stepwise" else ""
        told[name.removesuffix(".inner")]["scheme"] = f"s{form.weight_bits} per channel, {grids}{each}"
    for stub in plan.stubs:
        told[stub.name]["scheme"] = "dropped: only looked-up layers read it"
    for one in plan.lookups:
        ways = {
            "cache": f"{one.storage} table",
            "hoist": "computed once a request",
            "select": f"{one.storage} table or",
        }
        computed = told[one.name].get("scheme", "")
        told[one.name]["scheme"] = f"{ways[one.strategy]} {computed}".strip()
    return told
