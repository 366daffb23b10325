"""The points of a plot, named: which matrix of which run and module each row is from, and which unit or token it is."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.edit_record import BEFORE, KINDS, EditRecord, Family
from engine.errors import EditingError


@dataclass(frozen=True)
class Cloud:
    """One matrix of a plot.

    run: which of the plot's records, from 0; module: its place in the record; layer: its layer in the model.
    kind: of `edit_record.KINDS`. rows (n, width) float32, as computed. units (n,): the hidden unit of each row of a
    feature, None for tokens. facts, positions (n,), tokens, predicted: the token row itself; of a unit, the sampled
    token row at which it is most active (the largest |H|).
    """

    run: int
    module: int
    layer: int
    kind: str
    rows: np.ndarray
    units: np.ndarray | None
    facts: np.ndarray
    positions: np.ndarray
    tokens: tuple[str, ...]
    predicted: tuple[str, ...]

    @property
    def title(self) -> str:
        return KINDS[self.kind].title

    @property
    def quantity(self) -> str:
        """Matrices of the same quantity are scaled by the same number: before and after Eq. 4."""
        return KINDS[self.kind].quantity


def gather(
    record: EditRecord,
    family: Family,
    modules: Sequence[int],
    kinds: Sequence[str],
    sample: int,
    seed: int = 0,
    run: int = 0,
) -> list[Cloud]:
    """The clouds of these matrices of these modules, at most `sample` rows of each; the same rows of every matrix.

    Raises EditingError, in a sentence, for what cannot be drawn: no matrix, no module, one row, another family.
    """
    card = record.card
    if not kinds:
        raise EditingError("No matrix is chosen: choose one or more to draw.")
    if not modules:
        raise EditingError("No module is chosen: choose one or more to draw.")
    known = [name for name, kind in KINDS.items() if kind.family == family]
    if unknown := [kind for kind in kinds if kind not in known]:
        first = unknown[0]
        told = f"There is no matrix {first!r}"
        if first in KINDS:
            told = f"{KINDS[first].title} has no rows that are {family}"
        raise EditingError(f"{told}: choose among {', '.join(known)}.")
    if beyond := [module for module in modules if not 0 <= module < len(card.modules)]:
        raise EditingError(
            f"There is no module {beyond[0] + 1}: the run edited {len(card.modules)}, "
            f"of the layers {', '.join(str(module.layer) for module in card.modules)}."
        )
    if missing := [KINDS[kind].title for kind in kinds if kind not in record.kinds(family)]:
        why = "P is computed in training only." if missing == [KINDS["P"].title] else why_no_before(record, family)
        raise EditingError(f"{', '.join(missing)}: {why or 'this run does not have it.'} Choose another matrix.")
    if family == "tokens" and len(card.facts) < 2:
        raise EditingError(
            "The run has one token row only, a single fact with an answer of one token: there is nothing to compare it "
            "with. Draw its features, or edit more facts."
        )
    return [_cloud(record, run, module, kind, sample, seed) for module in modules for kind in kinds]


def neighbours(clouds: Sequence[Cloud], cloud: int, row: int, count: int = 10) -> list[tuple[int, int, float, float]]:
    """The rows nearest to one row in the original space: (cloud, row, Euclidean distance, cosine), nearest first.

    Looked for among all clouds of the same width, as computed: not scaled, not reduced.
    """
    point = clouds[cloud].rows[row].astype(np.float64)
    found = []
    for at, other in enumerate(clouds):
        if other.rows.shape[1] != len(point):
            continue
        rows = other.rows.astype(np.float64)
        distances = np.linalg.norm(rows - point, axis=1)
        lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(point)
        cosines = np.divide(rows @ point, lengths, out=np.zeros(len(rows)), where=lengths > 0)
        for index in np.argsort(distances, kind="stable")[: count + 1]:
            if (at, index) != (cloud, row):
                found.append((at, int(index), float(distances[index]), float(cosines[index])))
    return sorted(found, key=lambda one: one[2])[:count]


def _cloud(record: EditRecord, run: int, module: int, kind: str, sample: int, seed: int) -> Cloud:
    card, rows = record.card, record.matrix(kind, module)
    features = KINDS[kind].family == "features"
    index = np.arange(len(rows))
    if len(rows) > sample:
        # The same tokens of every module, the same units of a layer in every run.
        draw = (seed, card.modules[module].layer) if features else (seed,)
        index = np.sort(np.random.default_rng(draw).choice(len(rows), sample, replace=False))
    units, at = None, index
    if features:
        units = np.array(card.units[module])[index]
        at = np.abs(record.matrix("H", module)[:, units]).argmax(0)
    return Cloud(
        run=run,
        module=module,
        layer=card.modules[module].layer,
        kind=kind,
        rows=rows[index],
        units=units,
        facts=np.array(card.facts)[at],
        positions=np.array(card.positions)[at],
        tokens=tuple(card.tokens[one] for one in at),
        predicted=tuple(card.predicted[one] for one in at),
    )


def why_no_before(record: EditRecord, family: Family) -> str:
    """Why a record has no matrices before Eq. 4; "" where it has them."""
    card = record.card
    if set(BEFORE.values()) & set(record.kinds(family)):
        return ""
    if len(card.modules) == 1:
        return "a run with a single module has nothing before Eq. 4, which takes the previous module's gradient away."
    if card.projection == "off":
        return "this run was made without Eq. 4, so that nothing differs before and after it."
    if card.projection == "per_token" and family == "features":
        return "row by row, what was there before Eq. 4 is never summed."
    return "Eq. 4 left every module of this run as it was."
