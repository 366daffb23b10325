"""The training loop: draws batches, validates, saves checkpoints, and can be stopped and resumed.

A folder holds the latest hypernetwork with the optimiser's state, the best one by validation Score, and the log. It is
written at every validation, and in between when two minutes have passed.
Step t's batch depends only on the seed and t, so a resumed run goes on as an unbroken one: exactly where nothing
is kept (cache_gb 0), else to the rounding of the kept outputs, which depends on who shared a batch with whom.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.checkpoint import Checkpoint
from engine.delta import WeightDelta
from engine.edit_state import EditState
from engine.editors import EDITORS
from engine.errors import Cancelled, CheckpointError, FactError, NonFiniteError
from engine.facts import Fact, facts_sha256
from engine.hypernet import HyperNet
from engine.intervals import harmonic_mean
from engine.layers import parse_layers
from engine.metrics import score
from engine.model import EditableModel
from engine.old_keys import old_keys
from engine.progress import Progress, silent
from engine.prompts import row_owners
from engine.recorder import Recorder
from engine.statistics import EditSums, Solution, apply_inverse
from engine.train_settings import METHODS, TrainSettings
from engine.training import Rows, gather_rows, hypernet_gradient, outer_loss, solve_rows
from engine.training_data import TrainingData
from engine.training_state import TrainingState

SAVE_SECONDS = 120  # what a crash may cost, where validations are further apart
VALIDATED = (("ES", "exact"), ("GS", "exact"), ("LS", "agreement"), ("Score", "exact+agreement"))


class Trainer:
    """One training run in one folder.

    `train`, `valid`: facts of each data set by its name. `on_step` gets a dict for every step (step, loss,
    loss_equivalent, loss_unrelated, facts, seconds) and, at validations, ES, GS, LS, Score of each data set; the step
    and these alone for a validation that was cancelled and is made up for when its training goes on.
    """

    def __init__(
        self,
        model: EditableModel,
        train: Mapping[str, Sequence[Fact]],
        valid: Mapping[str, Sequence[Fact]],
        settings: TrainSettings,
        folder: Path,
    ):
        if settings.method not in METHODS:
            raise FactError(f"Unknown method {settings.method!r}: a hypernetwork is trained for {', '.join(METHODS)}.")
        self.model, self.settings, self.folder = model, settings, folder
        self.modules = model.edit_modules(parse_layers(settings.layers))
        self.valid = {name: list(facts)[: settings.valid_facts] for name, facts in valid.items()}
        facts = [fact for part in train.values() for fact in part]
        self.data = TrainingData(
            model, facts, self.modules, settings.outer_prompts, int(settings.cache_gb * 1e9), settings.scope
        )
        keys = []
        if settings.old_keys and settings.method != "mend":  # it solves nothing
            keys = old_keys(model, self.modules, self.data, settings.old_keys, settings.seed)
        start = settings.rank, settings.eta, settings.seed, settings.lam, len(keys[0]) if keys else 0
        self.hypernet = HyperNet(self.modules, *start).to(model.device)
        for own, found in zip(self.hypernet.old_keys, keys):
            own.copy_(found)
        ends = np.cumsum([len(part) for part in train.values()])
        self.sources = [range(end - len(part), end) for end, part in zip(ends, train.values()) if part]
        scalars = {self.hypernet.log_eta, self.hypernet.lam}
        self.optimiser = torch.optim.Adam(
            [
                {"params": [p for p in self.hypernet.parameters() if p not in scalars], "lr": settings.learning_rate},
                {"params": list(scalars), "lr": settings.scalar_rate},
            ]
        )
        self.rates = [group["lr"] for group in self.optimiser.param_groups]
        self.step = 0
        self.seconds = 0.0
        self.best = -1.0
        self.scores: list[dict] = []
        self.card = {
            "model": model.name,
            "model_sha256": model.sha256,
            "data": {
                name: {"train": len(facts), "valid": len(self.valid.get(name, [])), "train_sha256": facts_sha256(facts)}
                for name, facts in train.items()
            },
            "settings": asdict(replace(settings, projection=settings.reading().projection)),
        }

    def run(
        self,
        progress: Progress = silent,
        on_step: Callable[[dict], None] = lambda record: None,
        recorder: Recorder | None = None,
    ) -> Path:
        """Train to the last step; returns the folder of the best checkpoint. A cancel saves the steps done.

        `recorder` writes what the last step computed, where it solves M Δθ = HᵀG; that the disk is full is a note of
        the step.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.step == 0:
            self.log.unlink(missing_ok=True)
        saved, steps, last = self.step, self.settings.steps, time.monotonic()
        try:
            # Cancelled in the midst of its validation.
            if self._due and not any(score["step"] == self.step for score in self.scores):
                with self.model.lock:
                    record = self._validate(progress)
                self._tell(record, on_step)
                self._save()
            while self.step < steps:
                progress("Training", self.step, steps)
                started = time.perf_counter()
                with self.model.lock:  # for a step at a time, so that others may ask the model in between
                    record = self.train_step(recorder if self.step + 1 == steps else None)
                self.step += 1
                self.seconds += time.perf_counter() - started
                try:
                    validated = self._due
                    if validated or time.monotonic() - last > SAVE_SECONDS:
                        self._save(validated=False)  # before a validation, which may take minutes
                        saved, last = self.step, time.monotonic()
                    if validated:
                        with self.model.lock:
                            record |= self._validate(progress)
                        self._save()
                        last = time.monotonic()
                finally:  # the step is done, whatever became of its validation
                    self._tell(record, on_step)
        except Cancelled:
            if self.step > saved:
                self._save(validated=False)
            raise
        progress("Training", steps, steps)
        return self.best_folder

    @property
    def _due(self) -> bool:
        """Whether the step just done is one to be validated."""
        return self.step > 0 and (self.step % self.settings.validate_every == 0 or self.step == self.settings.steps)

    @property
    def best_folder(self) -> Path:
        """The checkpoint with the highest mean Score, of ES and LS alone where the facts have no equivalent prompts; the
        latest where nothing was validated."""
        return self.folder / ("best" if (self.folder / "best").exists() else "latest")

    @property
    def log(self) -> Path:
        """The records of all steps, one JSON object a line."""
        return self.folder / "log.jsonl"

    def _tell(self, record: dict, on_step: Callable[[dict], None]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)  # whoever took it away did not mean hours of steps
        with self.log.open("a", encoding="utf-8") as log:
            log.write(json.dumps(record) + "\n")
        on_step(record)

    def _draw(self) -> np.ndarray:
        """The facts of this step: one data set, a log-uniform size."""
        generator = np.random.default_rng((self.settings.seed, self.step))
        source = self.sources[self.step % len(self.sources)]
        low, high = np.log([self.settings.smallest_batch, self.settings.largest_batch])
        size = min(round(float(np.exp(generator.uniform(low, high)))), len(source))
        return generator.choice(source, size, replace=False)

    def _draw_round(self) -> int:
        """The round that this step learns, from 1 on; those before it run as they are."""
        return 1 + int(np.random.default_rng((self.settings.seed, self.step, 1)).integers(self.settings.rounds))

    def train_step(self, recorder: Recorder | None = None) -> dict:
        """One step on the batch that `step` draws: improves the hypernetwork, returns the step's record."""
        started = time.perf_counter()
        settings, reading, hypernet = self.settings, self.settings.reading(), self.hypernet
        members = self._draw().tolist()
        delta = None
        for _ in range(1 if recorder else self._draw_round()):  # what is recorded is a first round
            rows = gather_rows(hypernet, self.data, members, reading, delta)
            sums, solution = solve_rows(hypernet, rows, reading)
            shifts = {module.name: shift for module, shift in zip(self.modules, solution.shifts)}
            delta = delta.plus(shifts) if delta else WeightDelta(shifts, self.model.sha256, settings.method)
        outer = outer_loss(self.model, delta, self.data, members[: settings.outer_facts], settings.kappa)
        kept = {}
        if recorder and reading.least_squares:
            notes = self._record(recorder, members, rows, sums, solution, outer.gradients)
            kept = {"notes": notes} if notes else {}
        self.optimiser.zero_grad(set_to_none=True)
        hypernet_gradient(hypernet, rows, sums, solution, outer.gradients, reading)
        norm = torch.nn.utils.clip_grad_norm_(hypernet.parameters(), settings.clip)
        if not torch.isfinite(norm):
            raise NonFiniteError(
                f"The hypernetwork's gradient is not finite at step {self.step + 1}. The last checkpoint is kept: "
                "resume it with a lower learning rate."
            )
        decay = 0.1 + 0.45 * (1 + np.cos(np.pi * self.step / max(settings.steps, 1)))
        for group, rate in zip(self.optimiser.param_groups, self.rates):
            group["lr"] = rate * decay * min(1.0, (self.step + 1) / max(settings.warmup, 1))
        self.optimiser.step()
        return {
            "step": self.step + 1,
            "loss": outer.equivalent + settings.kappa * outer.unrelated,
            "loss_equivalent": outer.equivalent,
            "loss_unrelated": outer.unrelated,
            "gradient_norm": float(norm),
            "facts": len(members),
            "seconds": time.perf_counter() - started,
        } | kept

    def _record(
        self,
        recorder: Recorder,
        members: Sequence[int],
        rows: Rows,
        sums: EditSums,
        solution: Solution,
        gradients: Sequence[torch.Tensor],
    ) -> list[str]:
        """Let the recorder write this step's matrices and a sample of its rows, P of Eq. 6 among them; its notes."""
        reading, encoded = self.settings.reading(), self.data.edits

        def follow(l: int, keys: torch.Tensor, own: torch.Tensor) -> dict[str, torch.Tensor]:
            guide = gradients[l]
            if reading.gradient_projection:
                guide = apply_inverse(solution.factors[l], guide, reading.regularisation)
            return self.hypernet.named_rows(l, keys, own, reading.coefficient) | {"P": keys @ guide}

        recorder.add(row_owners(encoded, members, reading.scope), rows.keys, rows.gradients)
        last = (sums, solution, self.hypernet.lam.detach(), reading.regularisation, follow)
        recorder.finish(EditState(self.settings.method, self.modules, encoded, reading.scope, *last))
        return recorder.try_write(self.model)

    def _validate(self, progress: Progress) -> dict:
        editor_class = EDITORS[self.settings.method]
        editor = editor_class(editor_class.Settings(), Checkpoint("in training", self.hypernet, self.card))
        record: dict[str, float | int] = {"step": self.step}
        for name, facts in self.valid.items():
            delta = editor.edit(self.model, facts, progress).delta
            outcome = score(self.model, facts, delta, generate=0, progress=progress)
            for metric, protocol in VALIDATED:
                found = outcome.metric(metric, protocol)
                record[f"{name} {metric}"] = None if found is None else found.value
        self.scores.append(record)
        return record

    def _save(self, validated: bool = True) -> None:
        card = self.card | {
            "steps": self.step,
            "seconds": round(self.seconds, 1),
            "trained": datetime.now(UTC).isoformat(timespec="seconds"),
            "validation": self.scores,
        }
        checkpoint = Checkpoint(self.folder.name, self.hypernet, card)
        checkpoint.save(self.folder / "latest")
        mean = mean_score(self.scores[-1]) if self.scores else 0.0
        if validated and mean >= self.best:
            self.best = mean
            checkpoint.save(self.folder / "best")
        tensors = TrainingState.tensors_of(self.hypernet, self.optimiser)
        TrainingState(self.step, self.seconds, self.best, self.scores, self.card, tensors).save(self.folder)

    def start_from(self, checkpoint: Checkpoint) -> None:
        """Begin with a trained hypernetwork's state, its normalisers, η and λ too, instead of a random one.

        Raises CheckpointError when it is for another method, other weights or modules, or of another rank.
        """
        name, card = checkpoint.name, checkpoint.card
        if card["model_sha256"] != self.model.sha256:
            raise CheckpointError(f"{name} was trained for another model's weights: it cannot be a start for these.")
        if (method := card["settings"]["method"]) != self.settings.method:
            raise CheckpointError(f"{name} was trained for {method}: set the method to {method}, or start from another.")
        if checkpoint.hypernet.modules_edited != tuple(self.modules):
            layers = ",".join(str(module.layer) for module in checkpoint.hypernet.modules_edited)
            raise CheckpointError(f"{name} edits other modules than this training: set layers to {layers}.")
        learned = {name: own for name, own in checkpoint.hypernet.state_dict().items() if "old_keys" not in name}
        try:  # its old keys are those of its own training facts
            self.hypernet.load_state_dict(self.hypernet.state_dict() | learned)
        except RuntimeError:
            rank = next(iter(checkpoint.hypernet.blocks.values()))[0].A.shape[1]
            raise CheckpointError(f"{name} has rank {rank}: set rank to {rank}.") from None
        self.card["start"] = {"checkpoint": name, "steps": card.get("steps")}

    def resume(self) -> None:
        """Go on from the folder's last save. Raises CheckpointError when there is none or it was another run's."""
        state = TrainingState.load(self.folder, self.model.device)
        changed = state.changed(self.card, self.folder)
        state.restore(self.hypernet, self.optimiser)
        self.step, self.seconds, self.best, self.scores = state.step, state.seconds, state.best, state.scores
        self.card |= {name: state.card[name] for name in ("start", "resumed") if name in state.card}
        if changed:
            self.card["resumed"] = [*state.card.get("resumed", []), {"step": self.step, "changed": changed}]
        self._cut_log()

    def _cut_log(self) -> None:
        """Drop the records of steps after the last save: they are done again."""
        kept = []
        for line in self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []:
            try:
                if json.loads(line)["step"] <= self.step:
                    kept.append(line + "\n")
            except ValueError:
                continue  # cut short by a crash
        self.log.write_text("".join(kept), encoding="utf-8")


def mean_score(validation: Mapping[str, Any]) -> float:
    """By this the best checkpoint is kept: the mean Score of the data sets in a validation; of one whose facts lack a
    kind of prompt, the harmonic mean of the metrics that they have prompts for."""
    names = [name.removesuffix(" Score") for name in validation if name.endswith(" Score")]
    scores = [_score(validation, name) for name in names]
    return sum(scores) / len(scores) if scores else 0.0


def _score(validation: Mapping[str, Any], name: str) -> float:
    whole = validation.get(f"{name} Score")
    known = [value for metric in ("ES", "GS", "LS") if (value := validation.get(f"{name} {metric}")) is not None]
    return whole if whole is not None else harmonic_mean(known) if known else 0.0
