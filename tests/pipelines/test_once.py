"""What is kept is not computed again, unless it belongs to something else or cannot be read."""

from __future__ import annotations

from pathlib import Path

from pipelines.once import Once


def test_computed_once_for_each_key(tmp_path: Path) -> None:
    made: list[int] = []

    def make() -> dict[int, float]:
        made.append(1)
        return {4: 0.5}

    for _ in range(2):
        assert Once(tmp_path / "new", "one").get("numbers", dict[int, float], make) == {4: 0.5}
    assert len(made) == 1
    Once(tmp_path / "new", "other").get("numbers", dict[int, float], make)
    assert len(made) == 2
    assert sorted(path.suffix for path in (tmp_path / "new").iterdir()) == [".json", ".json"]


def test_what_cannot_be_read_is_done_again(tmp_path: Path) -> None:
    once = Once(tmp_path, "key")
    once.get("number", int, lambda: 1)
    (file,) = tmp_path.iterdir()
    file.write_text("{", encoding="utf-8")
    assert once.get("number", int, lambda: 2) == 2
    assert once.get("number", int, lambda: 3) == 2
