"""Trainings on this machine: a folder each, with the data it learns from, its log and its checkpoints.

    NAME/data/train/*.json, NAME/data/valid/*.json    the facts as they were split, so that it can go on later
    NAME/log.jsonl, training.safetensors, best/, latest/    written by engine.trainer
    NAME/card.json, hypernet.safetensors    the best checkpoint, where the other tabs look for it

It knows no interface. `python app.py train` can go on with these folders too: the data are ordinary files of facts.
"""

import json
import logging
import math
import re
import shutil
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from engine.checkpoint import CHECKPOINT_FILES, read_card
from engine.errors import CheckpointError, EditingError, FactError
from engine.fact_records import parse_records
from engine.facts import Fact, FactBatch
from engine.layers import parse_layers
from engine.model import EditableModel
from engine.train_settings import TrainSettings
from engine.trainer import mean_score
from engine.training_state import STATE
from studio.disk import disk_errors
from studio.training_run import LOG, TrainRequest, refuse_no_further

LONGEST_NAME = 60
AT_LEAST_ONE = (
    "rank", "steps", "smallest_batch", "largest_batch", "outer_facts", "rounds", "validate_every", "valid_facts",
)  # fmt: skip
ABOVE_ZERO = ("eta", "learning_rate", "scalar_rate", "clip")
NOT_NEGATIVE = ("warmup", "kappa", "old_keys", "cache_gb", "seed")
LARGEST_LAM = 50.0  # e^89 is more than float32 holds

log = logging.getLogger(__name__)

Facts = dict[str, tuple[Fact, ...]]


@dataclass(frozen=True)
class Resumable:
    """A training that can go on. `step` of `settings.steps` are done; `score`: its best mean validation Score."""

    name: str
    folder: Path
    settings: TrainSettings
    step: int
    score: float | None


def clean_name(text: str) -> str:
    """The text as a folder's name: ASCII letters, digits, - and _. Raises FactError when nothing is left."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    name = re.sub(r"[^A-Za-z0-9_]+", "-", plain).strip("-_")[:LONGEST_NAME].rstrip("-_")
    if not name:
        raise FactError("The checkpoint has no name: write one with letters or digits, such as my-facts-1.")
    return name


def free_name(root: Path, wanted: str) -> str:
    """`wanted`, or wanted-2, wanted-3, … when there is such a folder already."""
    name, number = wanted, 2
    while not _is_free(root / name):
        name, number = f"{wanted}-{number}", number + 1
    return name


def new_folder(root: Path, text: str) -> Path:
    """The folder for a new training of that name. Raises FactError when it is taken."""
    name = clean_name(text)
    if not _is_free(root / name):
        stands = "It can go on under “Resume a training”." if (root / name / STATE).is_file() else "It was aborted early."
        raise FactError(
            f"There is already a training named {name}. {stands} Choose another name: {free_name(root, name)} is free."
        )
    return root / name


def name_sets(batches: Sequence[FactBatch]) -> Facts:
    """The facts of each file under a short name: its published form, or the file's own name where that says more."""
    forms, names = [batch.form for batch in batches], {}
    for batch in batches:
        known = batch.form != "studio" and forms.count(batch.form) == 1
        wanted = batch.form if known else clean_name(Path(batch.source).stem)
        name, number = wanted, 2
        while name in names:
            name, number = f"{wanted}-{number}", number + 1
        names[name] = batch.facts
    return names


def hold_out(facts: Mapping[str, Sequence[Fact]], share: float, most: int, seed: int) -> tuple[Facts, Facts]:
    """(training, validation): `share` of each data set, at most about `most` facts, drawn by `seed`.

    Facts with the same prompt stay together. Raises FactError when a set is too small to be parted.
    """
    train, valid = {}, {}
    for name, part in facts.items():
        prompts = list(dict.fromkeys(fact.prompt for fact in part))
        count = min(max(1, round(share * len(prompts))), most)
        if count >= len(prompts):
            few = "1 fact is" if len(part) == 1 else f"{len(part)} facts are"
            raise FactError(f"{name}: {few} too few to hold some out. Give a validation file, or more facts.")
        held = {prompts[index] for index in np.random.default_rng(seed).permutation(len(prompts))[:count]}
        train[name] = tuple(fact for fact in part if fact.prompt not in held)
        valid[name] = tuple(fact for fact in part if fact.prompt in held)
    return train, valid


def check(settings: TrainSettings, model: EditableModel) -> None:
    """Raises FactError or ModelError, naming the setting, when a training with these could not begin."""
    for names, lowest, words in (
        (AT_LEAST_ONE, 1, "at least 1"),
        (ABOVE_ZERO, 1e-12, "more than 0"),
        (NOT_NEGATIVE, 0, "0 or more"),
    ):
        for name in names:
            if not lowest <= getattr(settings, name) < math.inf:  # NaN is refused, too
                raise FactError(f"{name} is {getattr(settings, name)}: it has to be {words}.")
    if not abs(settings.lam) <= LARGEST_LAM:
        raise FactError(f"lam is {settings.lam}: it has to be from −{LARGEST_LAM:g} to {LARGEST_LAM:g}.")
    if settings.smallest_batch > settings.largest_batch:
        raise FactError(
            f"smallest_batch ({settings.smallest_batch}) is more than largest_batch ({settings.largest_batch}): "
            "swap the two."
        )
    model.edit_modules(parse_layers(settings.layers))


def keep_data(folder: Path, train: Mapping[str, Sequence[Fact]], valid: Mapping[str, Sequence[Fact]]) -> None:
    """Write the facts into the training's folder, in CounterFact's fields: they allow what published data hold.

    Raises EditingError when the disk has no room for them; what was written is gone then.
    """
    with disk_errors(folder):
        try:
            for kind, sets in (("train", train), ("valid", valid)):
                place = folder / "data" / kind
                place.mkdir(parents=True)
                for number, (name, facts) in enumerate(sets.items(), 1):
                    text = json.dumps([published_record(fact) for fact in facts], ensure_ascii=False, indent=1)
                    (place / f"{number}-{name}.json").write_text(text, encoding="utf-8")
        except FileExistsError:  # another training's
            raise
        except BaseException:
            drop_data(folder)
            raise


def kept_data(folder: Path) -> tuple[Facts, Facts]:
    """(training, validation) as `keep_data` wrote them. Raises CheckpointError when they cannot be read."""
    try:
        return _read_sets(folder / "data" / "train"), _read_sets(folder / "data" / "valid")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"The data of the training in {folder} cannot be read: {error}") from error


def drop_data(folder: Path) -> None:
    """Let go of the facts of a training that saved nothing which could go on with them, of what it half wrote, and
    of its name: a log alone does not hold it.
    """
    halves = [folder / name for name in ("best", "latest") if not (folder / name / "card.json").is_file()]
    for place in (folder / "data", *halves):
        shutil.rmtree(place, ignore_errors=True)
    with suppress(OSError):  # there is a log: it had begun
        (folder / (STATE + ".part")).unlink(missing_ok=True)
        folder.rmdir()


def published_record(fact: Fact) -> dict[str, Any]:
    """A fact in the fields of CounterFact as EasyEdit publishes it; `parse_records` reads it back."""
    return {
        "prompt": fact.prompt,
        "target_new": fact.target,
        "rephrase_prompt": list(fact.equivalent),
        "locality_prompt": [prompt for prompt, _ in fact.unrelated],
        "locality_ground_truth": [answer for _, answer in fact.unrelated],
        "subject": fact.subject,
        "ground_truth": fact.old_target,
    }


def resumable(root: Path, model_sha256: str) -> list[Resumable]:
    """The trainings of this model that can go on, the one saved last first."""
    found = []
    for state in sorted(root.glob(f"*/{STATE}"), key=lambda path: path.stat().st_mtime, reverse=True):
        folder = state.parent
        try:
            card = json.loads((folder / "latest" / "card.json").read_text(encoding="utf-8"))
            settings = TrainSettings(**card["settings"])
            step, best = int(card["steps"]), max(map(mean_score, card["validation"]), default=None)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # another program's folder, or one that was damaged: nothing to offer
        if card["model_sha256"] == model_sha256 and (folder / "data" / "train").is_dir():
            found.append(Resumable(folder.name, folder, settings, step, best))
    return found


def resume_request(training: Resumable, steps: int) -> TrainRequest:
    """Go on to step `steps`. Raises FactError when that is no further than it is."""
    refuse_no_further(training.name, training.step, steps)
    train, valid = kept_data(training.folder)
    return TrainRequest(train, valid, replace(training.settings, steps=steps), training.folder, resume=True)


def best_saved(folder: Path) -> Path | None:
    """The best checkpoint that the training has saved: the latest where nothing was validated."""
    for name in ("best", "latest"):
        with suppress(CheckpointError):  # not there, or damaged: it must not take the place of a good one
            read_card(folder / name)
            return folder / name
    return None


def publish(folder: Path) -> Path | None:
    """Put the training's best checkpoint where every tab finds it; None when there is none yet.

    Raises EditingError when the disk has no room for it; `publish_late` does it then.
    """
    source = best_saved(folder)
    if source is None:
        return None
    parts = {name: folder / (name + ".part") for name in CHECKPOINT_FILES}
    try:
        with disk_errors(folder):
            for name, part in parts.items():
                shutil.copyfile(source / name, part)
            for name, part in parts.items():
                part.replace(folder / name)
    except EditingError as error:
        for part in parts.values():
            part.unlink(missing_ok=True)
        later = "The studio offers it as a hypernetwork once it is started again with room."
        raise EditingError(f"{error} The checkpoint itself is whole, in {source}. {later}") from error
    return folder


def publish_late(root: Path) -> None:
    """Publish the checkpoints for which there was no room when their trainings ended."""
    for folder in root.glob("*"):
        source, card = best_saved(folder), folder / "card.json"
        if source and not (card.is_file() and card.stat().st_mtime >= (source / "card.json").stat().st_mtime):
            try:
                publish(folder)
            except EditingError as error:
                log.warning("%s", error)


def _is_free(folder: Path) -> bool:
    """Whether nothing is there, or only the log of a training that saved nothing."""
    return not folder.exists() or list(folder.glob("*")) == [folder / LOG]


def _read_sets(place: Path) -> Facts:
    sets = {}
    for path in sorted(place.glob("*.json"), key=lambda path: int(path.stem.partition("-")[0])):
        records = json.loads(path.read_text(encoding="utf-8"))
        sets[path.stem.partition("-")[2]] = parse_records(records, path.name).facts
    return sets
