"""Prompts with answers → token batches. Knows the tokenizer, not the model's layers.

An answer is tokenised as a word behind one space, without special tokens, and each of its tokens is predicted at the
position before it. Padding is on the right: with a causal model no real token ever sees it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.errors import FactError, ModelError
from engine.facts import Fact, with_equivalents
from engine.subjects import clear_subjects

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from engine.model import EditableModel

# Which positions of an editing prompt become rows of H and ∇G: those that predict an answer token, every token, the
# subject's last token, or that one beside the answer's.
SCOPES = ("answer", "all", "subject", "subject+answer")
SCOPE_HELP = "which token positions count: those that predict an answer token, all, or the subject's last"


@dataclass(frozen=True)
class EncodedPrompt:
    """ids: prompt tokens, then all answer tokens but the last. answer: the answer tokens, at least one.

    The token at index `start + i` predicts `answer[i]`. subject: the index of the subject's last token, where known.
    """

    ids: tuple[int, ...]
    answer: tuple[int, ...]
    subject: int | None = None

    @property
    def start(self) -> int:
        return len(self.ids) - len(self.answer)

    def rows(self, scope: str) -> tuple[int, ...]:
        """The indices that become rows, in rising order. Without a known subject the prompt's last token stands for it."""
        if scope == "all":
            return tuple(range(len(self.ids)))
        answers = range(self.start, len(self.ids))
        if scope == "answer":
            return tuple(answers)
        subject = self.start if self.subject is None else self.subject
        return (subject,) if scope == "subject" else tuple(sorted({subject, *answers}))


@dataclass(frozen=True)
class TokenBatch:
    """Prompts of like length, padded to (B, S).

    ids (B, S) int64; positions (T,) int64, flat indices b·S + s of the T predicting positions;
    labels (T,) int64; owner (T,) int64, the index of each position's prompt in the encoded list;
    tokens (N,) int64, flat indices of the N real tokens; lengths: of each prompt.
    """

    ids: Tensor
    positions: Tensor
    labels: Tensor
    owner: Tensor
    tokens: Tensor
    members: tuple[int, ...]
    lengths: tuple[int, ...]


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """The tokens of each prompt, to be continued: without the space and the end token it may close with."""
    rows = tokenizer([prompt.rstrip(" ") for prompt in prompts])["input_ids"] if prompts else []
    # Some tokenizers close every text with their end token.
    return [row[:-1] if len(row) > 1 and row[-1] == tokenizer.eos_token_id != row[0] else row for row in rows]


def encode(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]], context: int, where: Sequence[str]
) -> list[EncodedPrompt]:
    """Tokenise (prompt, answer) pairs. `where` names each pair's place for messages ("row 3, prompt").

    Raises FactError when one is longer than `context` tokens or an answer has no token.
    """
    if not pairs:
        return []
    prompts = prompt_ids(tokenizer, [prompt for prompt, _ in pairs])
    space = _space(tokenizer)
    answers = tokenizer([space + answer.strip(" ") for _, answer in pairs], add_special_tokens=False)["input_ids"]
    encoded = []
    for place, prompt, answer in zip(where, prompts, answers):
        if not answer or not prompt:
            raise FactError(f"{place}: the tokenizer makes no token of it. Write a prompt and an answer.")
        if len(prompt) + len(answer) - 1 > context:
            raise FactError(
                f"{place}: {len(prompt) + len(answer)} tokens, but the model's context holds {context}. Shorten it."
            )
        encoded.append(EncodedPrompt((*prompt, *answer[:-1]), tuple(answer)))
    return encoded


def _space(tokenizer: PreTrainedTokenizerBase) -> str:
    """What stands before an answer so that its tokens are those of a word behind a space.

    Nothing for a tokenizer that writes the space by itself, as those of Mistral and Phi-3: there would be two.
    """
    both, first, second = tokenizer(["a b", "a", "b"], add_special_tokens=False)["input_ids"]
    return "" if both == first + second else " "


def encode_facts(
    model: EditableModel, facts: Sequence[Fact], scope: str = "answer", within: str = "", equivalent: bool = False
) -> list[EncodedPrompt]:
    """The editing prompts with their targets, tokenised; for the scopes that need it with each subject's last token.

    `equivalent`: behind those of all facts their equivalent prompts, with the same targets. `within` names the facts'
    source in messages. Raises FactError for none, or for one too long; ModelError where the
    tokenizer cannot place a subject.
    """
    if not facts:
        raise FactError("There is no fact to edit: type one, or upload a file.")
    where = [f"{within}Row {fact.row or index + 1}, prompt" for index, fact in enumerate(facts)]
    if equivalent:
        where += [
            f"{within}Row {fact.row or index + 1}, equivalent prompt"
            for index, fact in enumerate(facts)
            for _ in fact.equivalent
        ]
        facts = with_equivalents(facts)
    encoded = encode(model.tokenizer, [(fact.prompt, fact.target) for fact in facts], model.context, where)
    if "subject" not in scope:
        return encoded
    subjects, _ = clear_subjects(facts)
    known = [index for index, subject in enumerate(subjects) if subject]
    ends = [subjects[index].end for index in known]
    for index, at in zip(known, tokens_ending(model, [facts[index].prompt for index in known], ends)):
        encoded[index] = replace(encoded[index], subject=min(at, encoded[index].start))
    return encoded


def tokens_ending(model: EditableModel, prompts: Sequence[str], ends: Sequence[int]) -> list[int]:
    """For each prompt, the index of the token that holds the last of its first `end` letters.

    Raises ModelError where the tokenizer does not tell.
    """
    if not prompts:
        return []
    if not model.tokenizer.is_fast:
        raise ModelError(
            f"The tokenizer of {model.name} does not say which letters its tokens stand for, so a subject cannot be "
            "found in a prompt. Load the model with its fast tokenizer (tokenizer.json)."
        )
    spans = model.tokenizer([prompt.rstrip(" ") for prompt in prompts], return_offsets_mapping=True)["offset_mapping"]
    return [max(i for i, (first, last) in enumerate(row) if first < min(end, last)) for row, end in zip(spans, ends)]


def batches(
    encoded: Sequence[EncodedPrompt],
    tokens_per_chunk: int,
    device: torch.device | str = "cpu",
    members: Sequence[int] | None = None,
) -> Iterator[TokenBatch]:
    """Token batches of at most `tokens_per_chunk` tokens (at least one prompt), sorted by length.

    `members`: the indices to take from `encoded`; without it, all of them.
    """
    chosen = range(len(encoded)) if members is None else members
    order = sorted(chosen, key=lambda index: len(encoded[index].ids))
    first = 0
    while first < len(order):
        last = first + 1
        while last < len(order) and (last + 1 - first) * len(encoded[order[last]].ids) <= tokens_per_chunk:
            last += 1
        yield collate(encoded, order[first:last], device)
        first = last


def row_owners(encoded: Sequence[EncodedPrompt], members: Sequence[int], scope: str) -> Tensor:
    """Whose each row is when the rows of `members` stand in their order: (T,) int64."""
    counts = [len(encoded[index].rows(scope)) for index in members]
    return torch.repeat_interleave(torch.tensor(members), torch.tensor(counts))


def collate(encoded: Sequence[EncodedPrompt], members: Sequence[int], device: torch.device | str) -> TokenBatch:
    """One token batch of the encoded prompts `members`."""
    width = max(len(encoded[index].ids) for index in members)
    rows = [list(encoded[index].ids) + [0] * (width - len(encoded[index].ids)) for index in members]
    positions, labels, owner, tokens = [], [], [], []
    for row, index in enumerate(members):
        item = encoded[index]
        positions += range(row * width + item.start, row * width + len(item.ids))
        labels += item.answer
        owner += [index] * len(item.answer)
        tokens += range(row * width, row * width + len(item.ids))
    as_tensor = partial(torch.tensor, dtype=torch.long, device=device)
    return TokenBatch(
        as_tensor(rows),
        as_tensor(positions),
        as_tensor(labels),
        as_tensor(owner),
        as_tensor(tokens),
        tuple(members),
        tuple(len(encoded[index].ids) for index in members),
    )
