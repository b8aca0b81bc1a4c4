"""Rooflines: peaks are rates, and products of a graph are those that its layers have."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import roofline
from bench.rivals import rival
from bench.rivals.ours import cache_of
from bench.subjects import subject

PRODUCTS = [
    roofline.Product("a", "brgemm_avx512_I8", 2048, 100, 50, 1e-3),
    roofline.Product("b", "brgemm_avx512_I8", 1024, 100, 100, 4e-3),
    roofline.Product("c", "brgemm_avx512_I8", 64, 100, 100, 1e-3),
]


def test_peaks_are_the_best_of_what_was_tried() -> None:
    best, tried = roofline.measured_peaks(1, sides=(64, 128), rounds=3)
    assert set(best) == {"float32", "bfloat16", "int8"}
    assert all(best[form] == max(ways.values()) > 0 for form, ways in tried.items())
    assert {way.rpartition(" ")[2] for way in tried["float32"]} == {"64", "128"}


def test_shares_count_large_products_apart() -> None:
    found = roofline.shares(PRODUCTS, peak=2e10)
    operations = [2 * 2048 * 100 * 50, 2 * 1024 * 100 * 100, 2 * 64 * 100 * 100]
    assert found["products"] == 3 and found["large_products"] == 2
    assert found["share"] == pytest.approx(sum(operations) / 6e-3 / 2e10)
    assert found["large_share"] == pytest.approx(sum(operations[:2]) / 5e-3 / 2e10)
    assert found["large_worst"] == pytest.approx(operations[1] / 4e-3 / 2e10)
    assert roofline.shares([], peak=1.0)["large_share"] is None
    assert [one["name"] for one in roofline.slowest(PRODUCTS, 2e10, count=1)] == ["b"]


def test_products_of_a_layer_of_ours(tmp_path: Path) -> None:
    about, ours = subject("linear-128x32x48", tmp_path), rival("tfmq-w8a8")
    work, call = about.work(ours.name, 1), about.test()[0].call
    ours.build(work)
    ours.open(work).run(call)
    (graph,) = cache_of(work).rglob("*.xml")
    assert roofline.takes(graph, [64, 32]) and not roofline.takes(graph, [32, 32])
    (product,) = roofline.integer_products(graph, [2, 64, 32], threads=1, rounds=2)
    assert (product.rows, product.inner, product.columns) == (128, 32, 48)
    assert product.operations == 2 * 128 * 32 * 48 and product.seconds > 0
