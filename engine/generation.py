"""What the model really generates: greedy continuations, and the likeliest next tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.delta import WeightDelta
from engine.errors import FactError
from engine.model import EditableModel
from engine.progress import Progress, silent
from engine.prompts import EncodedPrompt, prompt_ids

SHOWN_TOKENS = 8
LONGEST = 64
PROMPTS_AT_ONCE = 32
OWN_ANSWER_TOKENS = 5


@dataclass(frozen=True)
class ProbeSide:
    """A greedy continuation, and the likeliest next tokens with their probabilities."""

    text: str
    top: list[tuple[str, float]]


@dataclass(frozen=True)
class Probe:
    before: ProbeSide
    after: ProbeSide | None


def continuations(
    model: EditableModel,
    prompts: Sequence[str],
    answer_lengths: Sequence[int],
    delta: WeightDelta | None,
    progress: Progress = silent,
) -> list[str]:
    """Greedy text after each prompt: at least SHOWN_TOKENS tokens, more for a longer answer, at most LONGEST."""
    order = sorted(range(len(prompts)), key=lambda index: (answer_lengths[index], len(prompts[index])))
    texts = [""] * len(prompts)
    for first in range(0, len(order), PROMPTS_AT_ONCE):
        progress("Generating", first, len(order))
        members = order[first : first + PROMPTS_AT_ONCE]
        new = min(max(SHOWN_TOKENS, max(answer_lengths[index] for index in members)), LONGEST)
        ids = prompt_ids(model.tokenizer, [prompts[index] for index in members])
        for index, tokens in zip(members, _greedy(model, ids, new, delta)):
            texts[index] = model.tokenizer.decode(tokens, skip_special_tokens=True).strip()
    return texts


def own_answers(model: EditableModel, prompts: Sequence[EncodedPrompt]) -> list[EncodedPrompt]:
    """The same prompts answered by the unedited model itself, OWN_ANSWER_TOKENS greedy tokens at most."""
    bare = [list(item.ids[: item.start + 1]) for item in prompts]
    answered = []
    for first in range(0, len(bare), PROMPTS_AT_ONCE):
        part = bare[first : first + PROMPTS_AT_ONCE]
        for ids, tokens in zip(part, _greedy(model, part, OWN_ANSWER_TOKENS, None)):
            answered.append(EncodedPrompt((*ids, *tokens[:-1]), tuple(tokens)))
    return answered


def probe(
    model: EditableModel, prompt: str, delta: WeightDelta | None, new_tokens: int = 24, top: int = 5
) -> Probe:
    """What the model says to any prompt before and, with a delta, after. Raises FactError for an unusable prompt."""
    ids = prompt_ids(model.tokenizer, [prompt])[0] if prompt.strip() else []
    if not ids:
        raise FactError("The prompt is empty: type the beginning of a sentence, or a question.")
    if len(ids) > model.context:
        raise FactError(f"The prompt has {len(ids)} tokens; the model's context holds {model.context}. Shorten it.")

    def side(shift: WeightDelta | None) -> ProbeSide:
        tokens = _greedy(model, [ids], new_tokens, shift)[0]
        with torch.no_grad(), model.edited(shift), model.autocast():
            logits = model.lm(torch.tensor([ids], device=model.device), logits_to_keep=1).logits[0, -1].float()
        chances = logits.softmax(0).topk(top)
        pairs = zip(chances.indices.tolist(), chances.values.tolist())
        likeliest = [(model.tokenizer.decode([token]), chance) for token, chance in pairs]
        return ProbeSide(model.tokenizer.decode(tokens, skip_special_tokens=True), likeliest)

    return Probe(side(None), side(delta) if delta is not None else None)


def _greedy(model: EditableModel, prompts: Sequence[list[int]], new: int, delta: WeightDelta | None) -> list[list[int]]:
    """Greedy token ids after each prompt, ended before the end token unless that is all there is.

    Fewer than `new` where the model's context ends before.
    """
    if not prompts:
        return []
    width = max(map(len, prompts))
    room = model.context - width + 1  # the last token is not read again
    if new > room and len(prompts) > 1:
        return [row for prompt in prompts for row in _greedy(model, [prompt], new, delta)]
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=model.device)
    mask: Tensor = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    end = model.tokenizer.eos_token_id
    with torch.no_grad(), model.edited(delta), model.autocast():
        out = model.lm.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=min(new, room),
            do_sample=False,
            repetition_penalty=1.0,  # some models' own settings have another
            num_beams=1,
            pad_token_id=end if end is not None else 0,
            eos_token_id=end,
        )
    rows = []
    for row in out[:, width:].tolist():
        stop = row.index(end) if end in row else len(row)
        rows.append(row[: max(stop, 1)])
    return rows
