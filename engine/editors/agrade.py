"""AGRADE: projected gradients, Eq. 4 against the previous module's gradient, a least-squares solve.

The edit streams: each chunk of facts goes through the model once a round, its rows enter the sums, and are dropped.
The paper's edit has one round. A further one does the same from the weights that the one before has left: one solve is
right to first order only, and for many facts, whose shifts meet, that is too little.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from engine.checkpoint import Checkpoint
from engine.delta import WeightDelta
from engine.edit_state import EditState
from engine.editors import Edit, Editor, register, shift_figures
from engine.errors import CheckpointError
from engine.facts import Fact
from engine.generation import own_answer_steps
from engine.model import EditableModel, EditModule
from engine.old_keys import kept_keys, unrelated_prompts
from engine.progress import Progress, silent
from engine.prompts import SCOPE_HELP, SCOPES, encode_facts
from engine.recorder import Recorder
from engine.setting_bounds import ROUNDS, SCALES
from engine.statistics import PROJECTIONS, EditSums, Solution, factorise
from engine.subjects import clear_subjects
from engine.trace import Traced, says_all, trace
from engine.training import Reading
from engine.trunk import TrunkCache
from engine.work import Work, rows_of, summing, tokens_of, tracing

ROUNDS_HELP = (
    "the facts are edited so often, each time from the weights of the round before, until every answer token is the "
    "likeliest; 0: as trained"
)
FEW = 0.05  # of the facts: so many that are not learned are no reason for another round
TRUNK_BYTES = 2**25  # kept for the rounds after the first; what does not fit is computed again
STEP_HELP = (
    "multiplies the weight shift of every round; 0: as the checkpoint says for so many facts, or 1, as it was trained"
)
OLD_KEYS_HELP = "M holds keys of unrelated prompts too, if it did in the hypernetwork's training; the paper's does not"
KEEP_HELP = (
    "M holds the keys of the facts' own unrelated prompts too, so that the edit leaves these alone; LS then measures "
    "prompts that it was told of"
)
TEACH_HELP = (
    "the equivalent prompts are edited as facts of their own, so that they follow; GS then measures prompts that the "
    "edit was shown"
)
TAUGHT = (
    "The edit was shown the equivalent prompts (teach_equivalent): GS says how well it learned these, and others may "
    "follow less."
)
KEPT = (
    "The edit was told of the unrelated prompts (keep_unrelated): LS says how well it keeps to these, and others may "
    "change more."
)
FIRST_ROUND = "The projections show the first round, the one from the original weights."


@dataclass(frozen=True)
class AgradeSettings:
    """The ablations of Table 2 that concern the edit. A default of "trained" takes what the checkpoint's card says."""

    projection: str = field(
        default="trained",
        metadata={
            "help": "Eq. 4, what is removed: the previous module's scaled gradient, the same after its own Eq. 4 "
            "(projected), row by row (per_token), or nothing (off)",
            "choices": ("trained", *PROJECTIONS),
        },
    )
    scope: str = field(default="trained", metadata={"help": SCOPE_HELP, "choices": ("trained", *SCOPES)})
    coefficient: bool = field(
        default=True,
        metadata={"help": "the adjustment coefficient c of Eq. 1 (off, or trained without it: c = −η)"},
    )
    regularisation: bool = field(
        default=True,
        metadata={"help": "e^λ I in M, Eq. 3 (off, or trained without it: least squares of least norm)"},
    )
    old_keys: bool = field(default=True, metadata={"help": OLD_KEYS_HELP})
    keep_unrelated: bool = field(default=False, metadata={"help": KEEP_HELP})
    teach_equivalent: bool = field(default=False, metadata={"help": TEACH_HELP})
    rounds: int = field(default=0, metadata={"help": ROUNDS_HELP, "bounds": ROUNDS})
    step_scale: float = field(default=0.0, metadata={"help": STEP_HELP, "bounds": SCALES})


@register("agrade")
class Agrade(Editor):
    title = "AGRADE"
    needs = frozenset({"hypernetwork"})
    records = True
    Settings = AgradeSettings
    grid = {"rounds": (1, 2, 3), "step_scale": (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0)}

    def __init__(self, settings: AgradeSettings, checkpoint: Checkpoint):
        self.settings = settings
        self.checkpoint = checkpoint

    def reading(self) -> str:
        """The reading of Eq. 4 in force."""
        chosen = self.settings.projection
        return self.checkpoint.card["settings"]["projection"] if chosen == "trained" else chosen

    def equations(self) -> Reading:
        """The equations of this edit, where a setting says "trained" those of the checkpoint."""
        settings, trained = self.settings, self.checkpoint.card["settings"]
        return Reading(
            self.reading(),
            self.scope(),
            settings.coefficient and trained.get("coefficient", True),
            settings.regularisation and trained.get("regularisation", True),
        )

    def scope(self) -> str:
        """The token positions that become rows."""
        chosen = self.settings.scope
        return self.checkpoint.card["settings"]["scope"] if chosen == "trained" else chosen

    def rounds(self) -> int:
        """How often the facts are edited, at most."""
        return self.settings.rounds or self.checkpoint.card["settings"].get("rounds", 1)

    def step_scale(self, prompts: int) -> float:
        """What the weight shifts are multiplied by where so many prompts are edited at once."""
        return self.settings.step_scale or self.checkpoint.step_scale(prompts)

    def old_keys(self) -> list[Tensor]:
        """K₀ of every module, where the hypernetwork has them and they are wanted."""
        return self.checkpoint.hypernet.old_keys if self.settings.old_keys else []

    def keeps_unrelated(self) -> bool:
        """Whether the facts' own unrelated prompts stand in M."""
        return self.settings.keep_unrelated

    def modules(self, model: EditableModel) -> list[EditModule]:
        return list(self.checkpoint.hypernet.modules_edited)

    def work(self, model: EditableModel, facts: Sequence[Fact]) -> Work:
        encoded = encode_facts(model, facts, self.scope(), equivalent=self.settings.teach_equivalent)
        modules, rounds = self.modules(model), self.rounds()
        kept = unrelated_prompts(model, facts, ask=False) if self.keeps_unrelated() else []
        rows = rows_of(encoded, self.scope()) + rows_of(kept, "answer")
        sums = summing(modules, rows, self.checkpoint.hypernet.directions)
        sums = replace(sums, operations=rounds * sums.operations)
        asked = sum(not answer for fact in facts for _, answer in fact.unrelated) if kept else 0
        seen = replace(tracing(model, modules, tokens_of(kept), rounds), backward=0.0, steps=own_answer_steps(asked))
        return replace(tracing(model, modules, tokens_of(encoded), rounds) + seen + sums, at_most=rounds > 1)

    def notes(self, facts: Sequence[Fact]) -> list[str]:
        return clear_subjects(facts)[1] if "subject" in self.scope() else []

    def advice(self, unsaid: int, facts: int) -> list[str]:
        if unsaid <= FEW * facts:
            return []
        return [
            f"Not said after this edit: {unsaid:,} of {facts:,}. One more round (rounds={self.rounds() + 1}) should "
            "teach more of them, and may change more of what is unrelated."
        ]

    def edit(
        self,
        model: EditableModel,
        facts: Sequence[Fact],
        progress: Progress = silent,
        recorder: Recorder | None = None,
    ) -> Edit:
        modules = self._modules_in(model)
        started = time.perf_counter()
        equations, hypernet = self.equations(), self.checkpoint.hypernet
        lam = hypernet.lam.detach()
        encoded = encode_facts(model, facts, equations.scope, equivalent=self.settings.teach_equivalent)
        step_scale, rounds = self.step_scale(len(encoded)), self.rounds()
        kept = unrelated_prompts(model, facts, progress=progress) if self.keeps_unrelated() else []
        info = {"facts": len(facts), "hypernetwork": self.checkpoint.name}
        info |= {"projection": equations.projection, "scope": equations.scope, "step_scale": step_scale}
        info["rounds"] = rounds
        total = rounds * (tokens_of(encoded) + tokens_of(kept))
        first_layer = modules[0].layer
        room = TRUNK_BYTES if rounds > 1 else 0
        trunk, kept_trunk = (TrunkCache(model, first_layer, prompts, room) for prompts in (encoded, kept))
        shapes, old = [(one.d_h, one.d_g) for one in modules], self.old_keys()
        old_factors = [factorise(keys @ keys.T, own, True, "K₀") for keys, own in zip(old, lam)]  # for all rounds
        notes = [*self.notes(facts), *self._other_pattern(model), *([KEPT] if kept else [])]
        notes += [TAUGHT] if len(encoded) > len(facts) else []
        delta, figures, tokens = None, [], 0
        progress("Editing", 0, total)
        for number in range(rounds):
            first = number == 0
            sums = EditSums(shapes, equations.projection, equations.least_squares, old, old_factors)
            with torch.no_grad(), model.edited(delta):
                if not first and says_all(model, first_layer, encoded, trunk):
                    break
                for chunk in trace(model, modules, encoded, equations.scope, trunk=trunk):
                    self._add(sums, chunk, equations)
                    if recorder and first:
                        _record(recorder, chunk, len(facts))
                    tokens += chunk.tokens
                    progress("Editing", tokens, total)
                for keys in kept_keys(model, modules, kept, kept_trunk):
                    sums.keep(keys)
                    progress("Editing", tokens, total)  # where a cancel is heard
                tokens += tokens_of(kept)
                progress("Editing", tokens, total)
            solution = sums.solve(lam, equations.regularisation)
            shifts = {one.name: step_scale * shift for one, shift in zip(modules, solution.shifts)}
            delta = delta.plus(shifts) if delta else WeightDelta(shifts, model.sha256, self.name, info)
            notes += [note for note in solution.notes if note not in notes]
            if first:
                figures = [_projection_figures(sums, solution, l) for l in range(len(modules))]
            if recorder and first:
                follow = partial(hypernet.named_rows, coefficient=equations.coefficient)
                last = (sums, solution, lam, equations.regularisation, follow, step_scale)
                recorder.finish(EditState(self.name, modules, encoded, equations.scope, *last))
            elif recorder and FIRST_ROUND not in notes:
                notes.append(FIRST_ROUND)
            del sums, solution, shifts  # the next round's are as large
        norms = shift_figures(model, delta)
        return Edit(
            delta, time.perf_counter() - started, tokens, notes, [one | own for one, own in zip(norms, figures)]
        )

    def _modules_in(self, model: EditableModel) -> list[EditModule]:
        """Raises CheckpointError where the hypernetwork is another model's, or its modules are not this one's."""
        name, modules = self.checkpoint.name, self.modules(model)
        if self.checkpoint.card["model_sha256"] != model.sha256:
            raise CheckpointError(
                f"The hypernetwork {name} was trained for {self.checkpoint.card['model']}, not for {model.name}. Choose "
                "another one, or train one in the Train tab."
            )
        if model.edit_modules_named(module.name for module in modules) != modules:
            raise CheckpointError(
                f"The modules of the hypernetwork {name} are not those of {model.name}: it is damaged, choose another one."
            )
        return modules

    def _other_pattern(self, model: EditableModel) -> list[str]:
        """That the modules are those of the training, where the model was asked for by a pattern that names others."""
        pattern = model.asked.get("module_pattern")
        others = [one.name for one in self.modules(model) if pattern and one.name != pattern.format(one.layer)]
        if not others:
            return []
        return [
            f"The module pattern {pattern} is not used: the hypernetwork {self.checkpoint.name} edits the modules that it "
            f"was trained for, such as {others[0]}."
        ]

    def _add(self, sums: EditSums, chunk: Traced, equations: Reading) -> None:
        """Take a chunk's rows into the sums (Eqs. 1, 2)."""
        switches = equations.coefficient, equations.least_squares
        hypernet = self.checkpoint.hypernet
        rows = [hypernet.summands(l, *pair, *switches) for l, pair in enumerate(zip(chunk.keys, chunk.gradients))]
        sums.add([left for left, _ in rows], [scaled for _, scaled in rows])


def _record(recorder: Recorder, chunk: Traced, facts: int) -> None:
    """Hand over the rows of the facts themselves, the first so many of what is edited."""
    own = chunk.owner < facts
    if own.all():
        recorder.add(chunk.owner, chunk.keys, chunk.gradients)
    elif own.any():
        keys, gradients = ([rows[own.to(rows.device)] for rows in side] for side in (chunk.keys, chunk.gradients))
        recorder.add(chunk.owner[own], keys, gradients)


def _projection_figures(sums: EditSums, solution: Solution, l: int) -> dict[str, float | None]:
    return {"cosine_to_previous": sums.cosine_to_previous(l), "kept_by_eq4": sums.kept(l, solution.mixture)}
