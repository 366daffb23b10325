"""What an edit is going to run, in counts that depend on no machine: told before it, to tell seconds from hours.

Every editor declares its own; whoever has timed the model makes seconds of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.model import EditableModel, EditModule
from engine.prompts import EncodedPrompt
from engine.statistics import FLUSH_ROWS
from engine.tuning import TRUNK_BYTES

FLOAT32_BYTES = 4


@dataclass(frozen=True)
class Work:
    """Counts, right within a factor of two or so.

    forward, backward: tokens times layers that a forward pass takes them through, and a backward pass;
    steps: of writing text token by token, each of which reads all weights, however few the rows; operations:
    floating-point ones of sums and solves; bytes: the most held at once, the model and the activations of a chunk
    not included; at_most: the work may end sooner, by a stopping rule.
    """

    forward: float = 0.0
    backward: float = 0.0
    steps: int = 0
    operations: float = 0.0
    bytes: int = 0
    at_most: bool = False

    def __add__(self, other: Work) -> Work:
        """One after the other."""
        return Work(
            self.forward + other.forward,
            self.backward + other.backward,
            self.steps + other.steps,
            self.operations + other.operations,
            max(self.bytes, other.bytes),
            self.at_most or other.at_most,
        )


def tokens_of(encoded: Sequence[EncodedPrompt]) -> int:
    """Real tokens of all prompts."""
    return sum(len(item.ids) for item in encoded)


def rows_of(encoded: Sequence[EncodedPrompt], scope: str) -> int:
    """How many rows the prompts have."""
    return sum(len(item.rows(scope)) for item in encoded)


def tracing(model: EditableModel, modules: Sequence[EditModule], tokens: float, rounds: int = 1) -> Work:
    """Keys and value gradients of so many tokens, as in engine.trace: all layers, and back to the first edited one.

    What enters that one is kept for further `rounds`.
    """
    first = min(module.layer for module in modules)
    above = tokens * (model.layer_count - first)
    return Work(forward=tokens * first + rounds * above, backward=rounds * above)


def summing(modules: Sequence[EditModule], rows: float, old_keys: int = 0) -> Work:
    """HᵀH and HᵀG of so many rows and their solve, as in engine.statistics; M, two of HᵀG and Δθ are held.

    Of few rows no sum is made: the rows themselves are held, a matrix of T by T and Δθ. `old_keys`: the rows of K₀.
    """
    if rows < min(FLUSH_ROWS, *(one.d_h for one in modules)):
        return Work(
            operations=sum(
                2 * rows * (rows + old_keys) * (one.d_h + one.d_g)
                + 2 * old_keys * (rows + old_keys) * (rows + one.d_h)
                + rows**3 / 3
                + 2 * rows * one.d_h * one.d_g
                for one in modules
            ),
            bytes=int(
                FLOAT32_BYTES
                * sum(rows * (2 * one.d_h + 2 * one.d_g) + 2 * rows**2 + one.d_h * one.d_g for one in modules)
            ),
        )
    rows += old_keys
    return Work(
        operations=sum(
            2 * rows * one.d_h * (one.d_h + 2 * one.d_g) + one.d_h**3 / 3 + 2 * one.d_h**2 * one.d_g for one in modules
        ),
        bytes=FLOAT32_BYTES * sum(2 * one.d_h**2 + 3 * one.d_h * one.d_g for one in modules),
    )


def tuning(model: EditableModel, modules: Sequence[EditModule], tokens: float, passes: int, parameters: int) -> Work:
    """Passes of Adam on so many parameters at these modules, as in engine.tuning: the layers below run once."""
    first = min(module.layer for module in modules)
    above = tokens * (model.layer_count - first)
    held = FLOAT32_BYTES * 4 * parameters  # with their gradient and Adam's two moments
    kept = min(FLOAT32_BYTES * tokens * model.width, TRUNK_BYTES)
    return Work(tokens * first + passes * above, passes * above, bytes=int(held + kept), at_most=True)
