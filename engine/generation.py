"""What the model really generates: greedy continuations, and the likeliest next tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from engine.delta import WeightDelta
from engine.errors import FactError
from engine.forward import few_rows, second_half_edited
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
    sides: Sequence[WeightDelta | None],
    progress: Progress = silent,
) -> list[list[list[int]]]:
    """Greedy tokens after each prompt: at least SHOWN_TOKENS, more for a longer answer, at most LONGEST.

    sides: the delta to be added, None for the original weights; or both, (None, delta), decoded together.
    Returns for each side a list of tokens for each prompt.
    """
    order = sorted(range(len(prompts)), key=lambda index: (answer_lengths[index], len(prompts[index])))
    found: list[list[list[int]]] = [[[] for _ in prompts] for _ in sides]
    for first in range(0, len(order), PROMPTS_AT_ONCE):
        progress("Generating", first, len(order))
        members = order[first : first + PROMPTS_AT_ONCE]
        new = min(max(SHOWN_TOKENS, max(answer_lengths[index] for index in members)), LONGEST)
        ids = prompt_ids(model.tokenizer, [prompts[index] for index in members])
        for side, rows in zip(found, _greedy(model, ids, new, sides)):
            for index, tokens in zip(members, rows):
                side[index] = tokens
    return found


def said(model: EditableModel, tokens: Sequence[int]) -> str:
    """Generated tokens as they are shown."""
    return model.tokenizer.decode(tokens, skip_special_tokens=True).strip()


def own_answers(
    model: EditableModel,
    prompts: Sequence[EncodedPrompt],
    known: Sequence[Sequence[int] | None],
    progress: Progress = silent,
) -> list[EncodedPrompt]:
    """The same prompts answered by the unedited model itself, OWN_ANSWER_TOKENS greedy tokens at most.

    known: what it was found to say after each prompt, at least so many tokens; None where it is to be asked.
    """
    bare = [list(item.ids[: item.start + 1]) for item in prompts]
    answers = [None if tokens is None else list(tokens[:OWN_ANSWER_TOKENS]) for tokens in known]
    unknown = [index for index, tokens in enumerate(answers) if tokens is None]
    for first in range(0, len(unknown), PROMPTS_AT_ONCE):
        progress("Asking", first, len(unknown))
        part = unknown[first : first + PROMPTS_AT_ONCE]
        (rows,) = _greedy(model, [bare[index] for index in part], OWN_ANSWER_TOKENS, (None,))
        for index, tokens in zip(part, rows):
            answers[index] = tokens
    return [EncodedPrompt((*ids, *tokens[:-1]), tuple(tokens)) for ids, tokens in zip(bare, answers)]


def own_answer_steps(prompts: int) -> int:
    """How many tokens `own_answers` writes one after the other, at most, for so many unknown answers."""
    return -(-prompts // PROMPTS_AT_ONCE) * OWN_ANSWER_TOKENS


def probe(
    model: EditableModel, prompt: str, delta: WeightDelta | None, new_tokens: int = 24, top: int = 5
) -> Probe:
    """What the model says to any prompt before and, with a delta, after. Raises FactError for an unusable prompt."""
    ids = prompt_ids(model.tokenizer, [prompt])[0] if prompt.strip() else []
    if not ids:
        raise FactError("The prompt is empty: type the beginning of a sentence, or a question.")
    if len(ids) > model.context:
        raise FactError(f"The prompt has {len(ids)} tokens; the model's context holds {model.context}. Shorten it.")

    sides = (None,) if delta is None else (None, delta)
    shown = []
    for shift, (tokens,) in zip(sides, _greedy(model, [ids], new_tokens, sides)):
        with torch.no_grad(), model.edited(shift), model.autocast():
            logits = model.lm(torch.tensor([ids], device=model.device), logits_to_keep=1).logits[0, -1].float()
        chances = logits.softmax(0).topk(top)
        pairs = zip(chances.indices.tolist(), chances.values.tolist())
        likeliest = [(model.tokenizer.decode([token]), chance) for token, chance in pairs]
        shown.append(ProbeSide(model.tokenizer.decode(tokens, skip_special_tokens=True), likeliest))
    return Probe(shown[0], shown[1] if delta is not None else None)


def _greedy(
    model: EditableModel, prompts: Sequence[list[int]], new: int, sides: Sequence[WeightDelta | None]
) -> list[list[list[int]]]:
    """For each side (as in `continuations`) greedy token ids after each prompt.

    Ended before the end token unless that is all there is; fewer than `new` where the model's context ends before.
    """
    if not prompts:
        return [[] for _ in sides]
    width = max(map(len, prompts))
    room = model.context - width + 1  # the last token is not read again
    if new > room and len(prompts) > 1:
        alone = [_greedy(model, [prompt], new, sides) for prompt in prompts]
        return [[rows[side][0] for rows in alone] for side in range(len(sides))]
    padded = [[0] * (width - len(p)) + p for p in prompts] * len(sides)
    real = [[0] * (width - len(p)) + [1] * len(p) for p in prompts] * len(sides)
    ids, mask = torch.tensor(padded, device=model.device), torch.tensor(real, device=model.device)
    end = model.tokenizer.eos_token_id
    weights = second_half_edited(model, sides[1]) if len(sides) == 2 else model.edited(sides[0])
    with torch.no_grad(), few_rows(model), weights, model.autocast():
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
    return [rows[first : first + len(prompts)] for first in range(0, len(rows), len(prompts))]
