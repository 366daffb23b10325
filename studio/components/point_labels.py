"""What is known of a picture's points: fact, relation, outcome and token of each, in words and as colours' groups."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.cloud import Cloud
from engine.facts import Fact
from engine.metrics import Instance
from studio.components.markup import text, token_text
from studio.picture import Picture, Source

COLOURS = {
    "matrix": "Matrix",
    "module": "Module",
    "fact": "Fact",
    "relation": "Relation",
    "outcome": "Edit succeeded or not",
    "token": "Token",
}
SUCCEEDED, FAILED, UNKNOWN = "edit succeeded", "edit failed", "not scored"
# More groups than this cannot be told apart: the rarest are one.
MOST_GROUPS = 12
REST = "others"
LONGEST = 80


@dataclass(frozen=True)
class Groups:
    """The colours of a picture: names of the groups, and for each cloud the group (n,) of each row."""

    names: tuple[str, ...]
    members: list[np.ndarray]


class PointLabels:
    """Looks things up for the points of one picture."""

    def __init__(self, picture: Picture) -> None:
        self.picture = picture
        self._outcomes = [_outcomes(source.run.outcome.instances) for source in picture.sources]
        self._facts = [_facts(source) for source in picture.sources]

    def fact(self, cloud: Cloud, row: int) -> Fact | None:
        """The fact of a token, or the one whose token a unit is most active at; None where nothing is known of it."""
        return self._facts[cloud.run].get(int(cloud.facts[row]))

    def outcome(self, cloud: Cloud, row: int) -> str:
        """Whether the fact's edit succeeded, by the exact protocol."""
        found = self._outcomes[cloud.run].get(int(cloud.facts[row]))
        return UNKNOWN if found is None else SUCCEEDED if found else FAILED

    def hover(self, cloud: Cloud, row: int) -> str:
        """A point in a few lines of HTML, its texts escaped."""
        head = f"<b>{text(cloud.title)}</b>, layer {cloud.layer}"
        if len(self.picture.sources) > 1:
            head += f", run {self.picture.sources[cloud.run].number}"
        lines = [head]
        if cloud.units is not None:
            lines.append(f"hidden unit {int(cloud.units[row])}, most active at")
        fact = self.fact(cloud, row)
        if fact is not None:
            said = f"{fact.prompt} → {fact.target}"
            lines.append(f"fact {number(fact, int(cloud.facts[row]))}: {text(clip(said))}")
        tokens = text(f"{token_text(cloud.tokens[row])} → {token_text(cloud.predicted[row])}")
        lines.append(f"token {int(cloud.positions[row])}: {tokens}")
        lines.append(f"‖row‖ {np.linalg.norm(cloud.rows[row]):.4g} · {self.outcome(cloud, row)}")
        return "<br>".join(lines)

    def groups(self, colour: str) -> Groups:
        """The rows of every cloud, grouped by one of COLOURS."""
        names = [[self._group(colour, cloud, row) for row in range(len(cloud.rows))] for cloud in self.picture.clouds]
        counted = Counter(name for own in names for name in own)
        if colour in ("matrix", "module", "outcome"):
            kept = list(dict.fromkeys(name for own in names for name in own))
            if colour == "outcome":
                kept = [name for name in (SUCCEEDED, FAILED, UNKNOWN) if name in counted]
        else:
            kept = [name for name, _ in counted.most_common(MOST_GROUPS)]
            if len(counted) > MOST_GROUPS:
                kept = [*kept[: MOST_GROUPS - 1], REST]
        places = {name: at for at, name in enumerate(kept)}
        rest = places.get(REST, 0)
        return Groups(tuple(kept), [np.array([places.get(name, rest) for name in own], dtype=int) for own in names])

    def _group(self, colour: str, cloud: Cloud, row: int) -> str:
        if colour == "matrix":
            return cloud.title
        if colour == "module":
            return f"layer {cloud.layer}"
        if colour == "outcome":
            return self.outcome(cloud, row)
        if colour == "token":
            return token_text(cloud.predicted[row])
        fact = self.fact(cloud, row)
        if fact is None:
            return UNKNOWN
        if colour == "relation":
            return clip(relation(fact))
        return clip(f"{number(fact, int(cloud.facts[row]))}: {fact.prompt} → {fact.target}", 48)


def relation(fact: Fact) -> str:
    """The prompt with its subject left open, which facts of one relation have in common."""
    if not fact.subject or fact.subject not in fact.prompt:
        return "no subject given"
    return fact.prompt.replace(fact.subject, "…", 1)


def number(fact: Fact, index: int) -> int:
    """The fact's number as the tables count: its row in the source, else its place in the batch, from 1."""
    return fact.row or index + 1


def clip(value: str, longest: int = LONGEST) -> str:
    """One line, cut where it is too long."""
    line = " ".join(value.split())
    return line if len(line) <= longest else line[: longest - 1] + "…"


def _facts(source: Source) -> dict[int, Fact]:
    """The run's facts by their place in its batch; a training's from its record, which knows the sampled ones."""
    if source.run.facts:
        return dict(enumerate(source.run.facts))
    return {fact: Fact(prompt, target) for fact, prompt, target in source.record.card.prompts}


def _outcomes(instances: Sequence[Instance]) -> dict[int, bool]:
    return {one.fact: bool(one.success.get("exact")) for one in instances if one.kind == "edit"}
