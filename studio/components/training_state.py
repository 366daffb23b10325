"""Where a training job stands, for people: waiting, at which step, how long still, or how it ended."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.facts import FactBatch
from studio.components.markup import count, empty, note, seconds, text
from studio.components.panel import said
from studio.components.progress_bar import bar_html
from studio.jobs import Snapshot
from studio.trainings import best_saved

FORMS = {"studio": "the studio's columns", "counterfact": "CounterFact", "zsre": "zsRE", "selfcheckgpt": "SelfCheckGPT"}
SHOWN_WARNINGS = 20
NOTHING = empty(
    "No training yet.",
    "Choose the facts to learn from and press Start training: losses and validation scores appear here as they come.",
)


def head_of(shot: Snapshot) -> dict[str, Any]:
    """What the job said of itself when it began: name, folder, steps; {} before that."""
    return next((one for one in shot.log if "folder" in one), {})


def steps_of(shot: Snapshot) -> list[dict[str, Any]]:
    """The steps done by this job, oldest first."""
    return [one for one in shot.log if "step" in one]


def state_html(shot: Snapshot) -> str:
    """The job's state; its published checkpoint, if there is one, decides what a stopped one still offers."""
    head, steps = head_of(shot), steps_of(shot)
    name = head.get("name", "The training")
    if shot.state == "queued":
        return bar_html(shot)
    if shot.state == "running":
        return _running(shot, name, head.get("steps", 0), steps)
    folder = Path(head["folder"]) if head else None
    kept = folder is not None and (folder / "card.json").is_file()
    if shot.state == "done":
        done = f"{name} is trained, in {seconds(shot.seconds)}. The Edit tab now offers it as a hypernetwork."
        return note("done", done, [f"It lies in {shot.result}"])
    where = f"at step {steps[-1]['step']}" if steps else "before its first step"
    rest = (
        "The Edit tab offers its best checkpoint so far; go on with it under “Resume a training”."
        if kept
        else "Its best checkpoint so far is saved."
        if folder is not None and best_saved(folder)
        else "No checkpoint had been saved yet: the first one comes with the first validation."
    )
    if shot.state == "cancelled":
        return note("warning", f"{name} was aborted {where}.", [rest])
    return said("error", shot.error) + f"<p>{text(name)} failed {where}. {text(rest)}</p>"


def left(shot: Snapshot, steps: Sequence[dict[str, Any]], total: int) -> float | None:
    """Seconds until the last step, by the pace so far (validations and all); None before the second step."""
    if len(steps) < 2:
        return None
    return shot.seconds / len(steps) * (total - steps[-1]["step"])


def data_html(batches: Sequence[FactBatch]) -> str:
    """What was read: a line a file, what is missing for a good training, and the warnings folded away."""
    lines = []
    for batch in batches:
        equivalent = sum(len(fact.equivalent) for fact in batch)
        unrelated = sum(bool(answer) for fact in batch for _, answer in fact.unrelated)
        lines.append(
            f"{batch.source}: {count(len(batch), 'fact')} ({FORMS[batch.form]}), "
            f"{count(equivalent, 'equivalent prompt')} and {unrelated:,} unrelated with an answer"
        )
    html = note("info", f"{count(sum(map(len, batches)), 'fact')} to learn from", lines)
    if not any(answer for batch in batches for fact in batch for _, answer in fact.unrelated):
        advice = "Nothing would teach it to leave other facts alone. Add the columns unrelated and unrelated_answer."
        html += note("warning", "No unrelated prompt has an answer.", [advice])
    warnings = [str(one) for batch in batches for one in batch.warnings]
    if warnings:
        items = "".join(f"<li>{text(one)}</li>" for one in warnings[:SHOWN_WARNINGS])
        more = f"<li>… and {len(warnings) - SHOWN_WARNINGS:,} more.</li>" if len(warnings) > SHOWN_WARNINGS else ""
        html += f"<details><summary>{count(len(warnings), 'warning')}</summary><ul>{items}{more}</ul></details>"
    return html


def _running(shot: Snapshot, name: str, total: int, steps: Sequence[dict[str, Any]]) -> str:
    if shot.stage and total:
        step = steps[-1]["step"] if steps else shot.done if shot.stage == "Training" else 0
        scored = shot.done / max(shot.total, 1)
        stage = "Training step" if shot.stage == "Training" else f"{shot.stage} the validation facts, {scored:.0%}"
        shot = replace(shot, stage=stage, done=step, total=total, eta=left(shot, steps, total))
    else:
        shot = replace(shot, stage="Reading the training set")
    stopping = "Stopping: the step at hand is finished first."
    words = stopping if shot.cancelling else "Edits of this model wait until it ends."
    return f"<h3>{text(name)}</h3>{bar_html(shot)}<p class='quiet'>{words}</p>"
