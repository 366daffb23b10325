"""How long work reports itself: one callable, `progress(stage, done, total)`.

It may raise `engine.errors.Cancelled` to stop the work. It knows nothing of bars, browsers or terminals.
"""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]


def silent(stage: str, done: int, total: int) -> None:
    """The progress of nobody watching."""
