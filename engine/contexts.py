"""The prompts through which a fact is looked at by its subject: bare, behind prefixes, and "{subject} is a".

It knows no layer and no editor.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from engine.facts import Fact
from engine.forward import states_at
from engine.model import EditableModel
from engine.prompts import EncodedPrompt, batches, encode, prompt_ids, tokens_ending
from engine.sampling import sample
from engine.subjects import Subject
from engine.trunk import TrunkCache

OPENINGS = ("The", "Therefore", "Because", "I", "You")
PREFIX_TOKENS = 10
CLOSING_TOKENS = 1  # the full stop
SUBJECT_TOKENS = 4  # of "{subject} is a", cut, in the middle
UNREADABLE = "\N{REPLACEMENT CHARACTER}"
LIKELIEST = 5  # prefixes are drawn from so many tokens: the whole distribution strays


@dataclass(frozen=True)
class Contexts:
    """N facts, each with `asking` prompts that ask for its answer and one more that only names its subject.

    encoded[n · size + c]: fact n's prompt bare (c = 0), behind each prefix, and last "{subject} is a", cut after the
    subject: its only predicting position is the subject's last token. subjects: the index of that token in each of
    `encoded`. rows: "Row 3" of each fact, for messages.
    """

    encoded: list[EncodedPrompt]
    subjects: list[int]
    rows: list[str]
    asking: int

    @property
    def size(self) -> int:
        return self.asking + 1

    @cached_property
    def rests(self) -> list[EncodedPrompt]:
        """`encoded` from each subject's last token on: all that a shift of that token's state can change."""
        pairs = zip(self.encoded, self.subjects)
        return [EncodedPrompt(item.ids[subject:], item.answer) for item, subject in pairs]

    def members(self, fact: int) -> range:
        """The indices in `encoded` of one fact's prompts."""
        return range(fact * self.size, (fact + 1) * self.size)


def make_prefixes(model: EditableModel, seed: int) -> list[str]:
    """The beginnings the model writes after each of OPENINGS, each PREFIX_TOKENS long and closed by a full stop."""
    generator = torch.Generator().manual_seed(seed)
    prefixes = []
    for ids in prompt_ids(model.tokenizer, OPENINGS):
        tokens = sample(model, torch.tensor([ids]), max(PREFIX_TOKENS - len(ids), 1), generator, LIKELIEST)[0]
        text = model.tokenizer.decode(tokens, skip_special_tokens=True)
        letters = [letter if letter.isprintable() and letter != UNREADABLE else " " for letter in text]
        prefixes.append(" ".join("".join(letters).split()) + ". ")
    return prefixes


def count_tokens(tokens: int, facts: int) -> int:
    """About how many tokens the contexts of so many facts have, whose bare prompts have `tokens` in all."""
    prefixed = len(OPENINGS) * (tokens + facts * (PREFIX_TOKENS + CLOSING_TOKENS))
    return tokens + prefixed + facts * SUBJECT_TOKENS


def make_contexts(
    model: EditableModel, facts: Sequence[Fact], subjects: Sequence[Subject], prefixes: Sequence[str]
) -> Contexts:
    """The contexts of every fact. Raises FactError where one is longer than the model's context."""
    pairs, ends, where = [], [], []
    rows = [f"Row {fact.row or index + 1}" for index, fact in enumerate(facts)]
    for row, fact, subject in zip(rows, facts, subjects):
        for prefix in ("", *prefixes):
            pairs.append((prefix + fact.prompt, fact.target))
            ends.append(len(prefix) + subject.end)
            where.append(f"{row}, prompt" + (f" behind the prefix “{prefix.strip()}”" if prefix else ""))
        pairs.append((f"{subject.text} is a", fact.target))
        ends.append(len(subject.text))
        where.append(f"{row}, “{subject.text} is a”")
    encoded = encode(model.tokenizer, pairs, model.context, where)
    places = tokens_ending(model, [prompt for prompt, _ in pairs], ends)
    size = len(prefixes) + 2
    for index in range(size - 1, len(encoded), size):
        ids = encoded[index].ids[: places[index] + 1]
        encoded[index] = EncodedPrompt(ids, ids[-1:])
    return Contexts(encoded, places, rows, size - 1)


def subject_states(
    model: EditableModel, contexts: Contexts, members: Sequence[int], module: torch.nn.Module, trunk: TrunkCache
) -> tuple[Tensor, Tensor]:
    """What enters and what leaves `module` at the subject's last token of `members`, in their order.

    (n, D_in), (n, D_out) float32 on the model's first device. `trunk` hands over what enters its layer.
    """
    entered: dict[int, Tensor] = {}
    left: dict[int, Tensor] = {}
    for batch in batches(contexts.encoded, model.placement.tokens_per_chunk, model.device, members):
        [states] = states_at(model, batch, [module], trunk.layer, trunk(batch))
        width = batch.ids.shape[1]
        at = torch.tensor([row * width + contexts.subjects[index] for row, index in enumerate(batch.members)])
        for found, rows in zip((entered, left), states):
            found.update(zip(batch.members, rows.index_select(0, at.to(rows.device)).float().to(model.device)))
    return torch.stack([entered[index] for index in members]), torch.stack([left[index] for index in members])
