"""How an executable asks for memory before it takes more. Must not know who has how much to give."""

from __future__ import annotations

from collections.abc import Callable

Grow = Callable[[int, int, Callable[[], None]], bool]
"""`grow(held, more, take)`: whoever holds `held` bytes wants `more` bytes. Calls `take` and answers True where they may
be had, so that nobody else is given the same room; answers False where not, and then nothing was taken.
"""


def without_bound(held: int, more: int, take: Callable[[], None]) -> bool:
    """There is always room."""
    take()
    return True
