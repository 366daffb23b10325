"""ES, GS, LS and the Editing Score, each under its named protocol, before and after an edit.

Scoring streams: a chunk of prompts passes the frozen trunk once, then the suffix with the original weights
and with the edited ones. It knows nothing of how the delta was made.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from engine.delta import WeightDelta
from engine.facts import Fact
from engine.forward import answer_logits, trunk
from engine.generation import LONGEST, continuations, own_answers, said
from engine.intervals import bootstrap_mean, bootstrap_score, harmonic_mean, wilson
from engine.model import EditableModel
from engine.progress import Progress, silent
from engine.prompts import EncodedPrompt, batches, encode

Kind = Literal["edit", "equivalent", "unrelated"]
NAMES: dict[Kind, str] = {"edit": "ES", "equivalent": "GS", "unrelated": "LS"}
PROTOCOLS: dict[Kind, tuple[str, ...]] = {
    "edit": ("exact", "token", "generated"),
    "equivalent": ("exact", "token", "generated"),
    "unrelated": ("agreement", "label"),
}
# The Score's two readings: the appendix's indicators, and what the paper's tables measure.
SCORES = {"exact+agreement": ("exact", "agreement"), "token+label": ("token", "label")}


@dataclass(frozen=True)
class Output:
    """What the model says: the teacher-forced argmax at the answer positions, and a real greedy generation if run."""

    argmax: str
    generated: str | None = None


@dataclass(frozen=True)
class Instance:
    """One prompt of one fact with both outputs. `fact` counts from 0.

    `success` and `success_before` map a protocol to 0…1, or to None where it does not apply.
    """

    fact: int
    kind: Kind
    prompt: str
    target: str
    before: Output
    after: Output
    success: dict[str, float | None]
    success_before: dict[str, float | None]


@dataclass(frozen=True)
class Metric:
    """A mean over `n` instances, 0…1, with its value before the edit and a 95 % interval, None where none is known."""

    name: str
    protocol: str
    value: float | None
    before: float | None
    n: int
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Outcome:
    instances: list[Instance] = field(default_factory=list)
    metrics: list[Metric] = field(default_factory=list)

    def metric(self, name: str, protocol: str) -> Metric | None:
        """The metric of that name and protocol, or None when no instance gave it."""
        return next((m for m in self.metrics if (m.name, m.protocol) == (name, protocol)), None)


@dataclass(frozen=True)
class _Question:
    """A prompt to be scored; `known` says whether its answer was given (it then counts under `label`)."""

    fact: int
    kind: Kind
    prompt: str
    target: str
    known: bool


@dataclass(frozen=True)
class Unedited:
    """A batch's questions and what the original weights answer: asked once, whatever edits are scored against it.

    questions, encoded, argmax: for each instance its question, its tokens, and the teacher-forced argmax at its
    answer positions. said: greedy continuations by the instance's number, of the first facts.
    """

    questions: list[_Question]
    encoded: list[EncodedPrompt]
    argmax: list[tuple[int, ...]]
    said: dict[int, str]

    def first(self, facts: int) -> "Unedited":
        """The same of the first so many facts alone."""
        kept = sum(question.fact < facts for question in self.questions)  # in the facts' order
        said = {index: text for index, text in self.said.items() if index < kept}
        return Unedited(self.questions[:kept], self.encoded[:kept], self.argmax[:kept], said)

    def outcome(self, model: EditableModel) -> Outcome:
        """The original weights scored as if they were an edit: what a method is to be better than."""
        rows = zip(self.questions, self.encoded, self.argmax)
        instances = [
            _instance(model, question, item, said, said, self.said.get(index), self.said.get(index))
            for index, (question, item, said) in enumerate(rows)
        ]
        return Outcome(instances, summarise(instances))


def ask(model: EditableModel, facts: Sequence[Fact], generate: int = 64, progress: Progress = silent) -> Unedited:
    """Ask the original weights every question of `facts`; the prompts of the first `generate` are also continued.

    An unrelated prompt without an answer is held to the greedy continuation found here.
    Raises FactError when a prompt is longer than the model's context.
    """
    questions, encoded = _questions(model, facts)
    shown = [index for index, question in enumerate(questions) if question.fact < generate]
    (before,) = _continued(model, questions, encoded, shown, (None,), progress)
    _answer_open_ended(model, questions, encoded, before, progress)
    argmax: list[tuple[int, ...]] = [()] * len(encoded)
    done, total = 0, sum(len(item.ids) for item in encoded)
    progress("Scoring", 0, total)
    with torch.no_grad():
        for batch in batches(encoded, model.placement.tokens_per_chunk, model.device):
            _collect(argmax, batch, answer_logits(model, batch), encoded)
            done += sum(batch.lengths)
            progress("Scoring", done, total)
    return Unedited(questions, encoded, argmax, _texts(model, before))


def score(
    model: EditableModel,
    facts: Sequence[Fact],
    delta: WeightDelta,
    generate: int = 64,
    progress: Progress = silent,
    unedited: Unedited | None = None,
) -> Outcome:
    """Score an edit: every instance teacher-forced, those of the first `generate` facts also generated.

    unedited: what `ask` found for these facts; then only the edited weights are asked, and the same prompts
    generated. An unrelated prompt without an answer is held to the model's own greedy continuation before the edit.
    Raises FactError when a prompt is longer than the model's context.
    """
    if unedited is None:
        questions, encoded = _questions(model, facts)
        shown = [index for index, question in enumerate(questions) if question.fact < generate]
        said_before, said_after = _continued(model, questions, encoded, shown, (None, delta), progress)
        _answer_open_ended(model, questions, encoded, said_before, progress)
        texts_before = _texts(model, said_before)
    else:
        questions, encoded, texts_before = unedited.questions, unedited.encoded, unedited.said
        (said_after,) = _continued(model, questions, encoded, list(texts_before), (delta,), progress)
    texts_after = _texts(model, said_after)
    layer = model.first_layer(delta)
    before = unedited.argmax if unedited else [()] * len(encoded)
    after: list[tuple[int, ...]] = [()] * len(encoded)
    done, total = 0, sum(len(item.ids) for item in encoded)
    progress("Scoring", 0, total)
    with torch.no_grad():
        for batch in batches(encoded, model.placement.tokens_per_chunk, model.device):
            hidden = trunk(model, batch, layer)
            if unedited is None:
                _collect(before, batch, answer_logits(model, batch, layer, hidden), encoded)
            with model.edited(delta):
                _collect(after, batch, answer_logits(model, batch, layer, hidden), encoded)
            done += sum(batch.lengths)
            progress("Scoring", done, total)
    instances = [
        _instance(model, questions[i], encoded[i], before[i], after[i], texts_before.get(i), texts_after.get(i))
        for i in range(len(questions))
    ]
    return Outcome(instances, summarise(instances))


def _continued(
    model: EditableModel,
    questions: Sequence[_Question],
    encoded: Sequence[EncodedPrompt],
    shown: Sequence[int],
    sides: Sequence[WeightDelta | None],
    progress: Progress,
) -> list[dict[int, list[int]]]:
    """For each side the greedy tokens after the prompts of the instances `shown`, by the instance's number."""
    prompts, lengths = [questions[index].prompt for index in shown], [len(encoded[index].answer) for index in shown]
    return [dict(zip(shown, rows)) for rows in continuations(model, prompts, lengths, sides, progress)]


def _texts(model: EditableModel, tokens: dict[int, list[int]]) -> dict[int, str]:
    return {index: said(model, row) for index, row in tokens.items()}


def _questions(model: EditableModel, facts: Sequence[Fact]) -> tuple[list[_Question], list[EncodedPrompt]]:
    questions, where = [], []
    for index, fact in enumerate(facts):
        row = fact.row or index + 1
        questions.append(_Question(index, "edit", fact.prompt, fact.target, True))
        where.append(f"Row {row}, prompt")
        for prompt in fact.equivalent:
            questions.append(_Question(index, "equivalent", prompt, fact.target, True))
            where.append(f"Row {row}, equivalent prompt")
        for prompt, answer in fact.unrelated:
            questions.append(_Question(index, "unrelated", prompt, answer, bool(answer)))
            where.append(f"Row {row}, unrelated prompt")
    # An unrelated prompt without an answer has a stand-in until `_answer_open_ended`.
    return questions, encode(model.tokenizer, [(q.prompt, q.target or "?") for q in questions], model.context, where)


def _answer_open_ended(
    model: EditableModel,
    questions: list[_Question],
    encoded: list[EncodedPrompt],
    before: dict[int, list[int]],
    progress: Progress,
) -> None:
    """Hold the unrelated prompts without an answer to the unedited model's own. `before`: what it is known to say."""
    open_ended = [index for index, question in enumerate(questions) if not question.known]
    known = [before.get(index) for index in open_ended]
    answered = own_answers(model, [encoded[index] for index in open_ended], known, progress)
    for index, item in zip(open_ended, answered):
        encoded[index] = item
        question = questions[index]
        text = model.tokenizer.decode(item.answer, skip_special_tokens=True).strip()
        questions[index] = _Question(question.fact, question.kind, question.prompt, text, False)


def _collect(into: list[tuple[int, ...]], batch, logits: torch.Tensor, encoded: Sequence[EncodedPrompt]) -> None:
    tokens, first = logits.argmax(1).tolist(), 0
    for index in batch.members:
        count = len(encoded[index].answer)
        into[index] = tuple(tokens[first : first + count])
        first += count


def _instance(model, question: _Question, item: EncodedPrompt, before, after, said_before, said_after) -> Instance:
    def decode(tokens: tuple[int, ...]) -> str:
        return model.tokenizer.decode(tokens).strip()

    # A tokenizer that normalises does not give back the answer as it was typed.
    texts = tuple(filter(None, (question.target.strip(), said(model, item.answer))))
    return Instance(
        question.fact,
        question.kind,
        question.prompt,
        question.target,
        Output(decode(before), said_before),
        Output(decode(after), said_after),
        _success(question, item.answer, texts, before, after, said_after),
        _success(question, item.answer, texts, before, before, said_before),
    )


def _success(
    question: _Question, answer, texts: tuple[str, ...], before, now, said: str | None
) -> dict[str, float | None]:
    share = sum(a == b for a, b in zip(now, answer)) / len(answer)
    if question.kind == "unrelated":
        return {"agreement": float(now == before), "label": share if question.known else None}
    whole = said is not None and len(answer) <= LONGEST  # else what was generated ends before the answer does
    generated = float(said.startswith(texts)) if whole else None
    return {"exact": float(now == answer), "token": share, "generated": generated}


def summarise(instances: Sequence[Instance]) -> list[Metric]:
    """Every metric under every protocol that at least one instance gives, then the two Scores."""
    metrics = []
    for kind, name in NAMES.items():
        for protocol in PROTOCOLS[kind]:
            pairs = [
                (one.success[protocol], one.success_before[protocol])
                for one in instances
                if one.kind == kind and one.success[protocol] is not None
            ]
            if not pairs:
                continue
            values, befores = np.array(pairs, dtype=float).T
            interval = bootstrap_mean if protocol in ("token", "label") else wilson
            low, high = interval(values)
            metrics.append(Metric(name, protocol, float(values.mean()), float(befores.mean()), len(values), low, high))
    found = {(m.name, m.protocol): m for m in metrics}
    for protocol, (success, locality) in SCORES.items():
        parts = [found.get(key) for key in (("ES", success), ("GS", success), ("LS", locality))]
        if any(part is None for part in parts):
            continue
        low, high = bootstrap_score(instances, success, locality)
        metrics.append(
            Metric(
                "Score",
                protocol,
                harmonic_mean([part.value for part in parts]),
                harmonic_mean([part.before for part in parts]),
                len({one.fact for one in instances}),
                low,
                high,
            )
        )
    return metrics
