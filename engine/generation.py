"""What the model really generates: greedy continuations, and the likeliest next tokens."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
SHORT_PROMPT = 32  # up to so many tokens the lengths of prompts decoded together do not matter
PADDED_TOKENS = 2 * PROMPTS_AT_ONCE * SHORT_PROMPT
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
    encoded = prompt_ids(model.tokenizer, prompts)
    found: list[list[list[int]]] = [[[] for _ in prompts] for _ in sides]
    done = 0
    for members in decoding_batches(model, list(map(len, encoded)), answer_lengths, len(sides)):
        new = written_tokens(max(answer_lengths[index] for index in members))
        rows_of_sides = _greedy(
            model,
            [encoded[index] for index in members],
            new,
            sides,
            lambda step: progress("Generating", done + len(members) * step // new, len(prompts)),
        )
        for side, rows in zip(found, rows_of_sides):
            for index, tokens in zip(members, rows):
                side[index] = tokens
        done += len(members)
    return found


def written_tokens(answer_length: int) -> int:
    """How many tokens are generated to be shown beside an answer of so many."""
    return min(max(SHOWN_TOKENS, answer_length), LONGEST)


def decoding_batches(
    model: EditableModel, lengths: Sequence[int], answer_lengths: Sequence[int], sides: int
) -> list[list[int]]:
    """The numbers of the prompts that are decoded together, so that a long one does not pad short ones.

    lengths: tokens of each prompt; sides: how many sets of weights go on with it. The prompts of a batch are all up to
    SHORT_PROMPT tokens long, or none is twice as long as another. It has at most PROMPTS_AT_ONCE of them, and
    PADDED_TOKENS tokens, padding included (more where the placement allows more), and the context has room for what
    is written; a prompt beyond that is alone, as is every one where the model does not mask padding.
    """
    most = max(PADDED_TOKENS, model.placement.tokens_per_chunk)

    def octave(index: int) -> int:
        return (max(lengths[index], SHORT_PROMPT) - 1).bit_length()

    found: list[list[int]] = []
    width = answer = 0
    for index in sorted(range(len(lengths)), key=lambda index: (octave(index), answer_lengths[index], lengths[index])):
        width, answer = max(width, lengths[index]), max(answer, answer_lengths[index])
        rows = len(found[-1]) + 1 if found else 1
        fits = rows <= PROMPTS_AT_ONCE and rows * width * sides <= most
        fits = fits and width + written_tokens(answer) - 1 <= model.context and model.first_pass.masks_padding
        if found and fits and octave(index) == octave(found[-1][0]):
            found[-1].append(index)
        else:
            found.append([index])
            width, answer = lengths[index], answer_lengths[index]
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
    lengths, done = [len(bare[index]) for index in unknown], 0
    for members in decoding_batches(model, lengths, [OWN_ANSWER_TOKENS] * len(unknown), 1):
        part = [unknown[member] for member in members]
        (rows,) = _greedy(
            model,
            [bare[index] for index in part],
            OWN_ANSWER_TOKENS,
            (None,),
            lambda _step: progress("Asking", done, len(unknown)),
        )
        for index, tokens in zip(part, rows):
            answers[index] = tokens
        done += len(members)
    return [EncodedPrompt((*ids, *tokens[:-1]), tuple(tokens)) for ids, tokens in zip(bare, answers)]


def own_answer_steps(prompts: int) -> int:
    """How many tokens `own_answers` writes one after the other, at most, for so many short prompts."""
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
    model: EditableModel,
    prompts: Sequence[list[int]],
    new: int,
    sides: Sequence[WeightDelta | None],
    heard: Callable[[int], None] = lambda step: None,
) -> list[list[list[int]]]:
    """For each side (as in `continuations`) greedy token ids after each prompt.

    Ended before the end token unless that is all there is; fewer than `new` where the model's context ends before.
    heard: called before the first token and after each, with how many there are; what it raises ends the decoding.
    """
    width = max(map(len, prompts))
    room = model.context - width + 1  # the last token is not read again

    def step(ids: torch.Tensor, _scores: object) -> torch.Tensor:
        heard(ids.shape[1] - width)
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

    heard(0)
    padded = [[0] * (width - len(p)) + p for p in prompts] * len(sides)
    real = [[0] * (width - len(p)) + [1] * len(p) for p in prompts] * len(sides)
    ids, mask = torch.tensor(padded, device=model.device), torch.tensor(real, device=model.device)
    end = model.tokenizer.eos_token_id
    weights = second_half_edited(model, sides[1]) if len(sides) == 2 else model.edited(sides[0])
    with torch.no_grad(), few_rows(model), weights, model.autocast(), _no_own_settings(model):
        out = model.lm.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=min(new, room),
            do_sample=False,
            pad_token_id=end if end is not None else 0,
            eos_token_id=end,
            stopping_criteria=[step],
        )
    rows = []
    for row in out[:, width:].tolist():
        stop = row.index(end) if end in row else len(row)
        rows.append(row[: max(stop, 1)])
    return [rows[first : first + len(prompts)] for first in range(0, len(rows), len(prompts))]


@contextmanager
def _no_own_settings(model: EditableModel) -> Iterator[None]:
    """Without the settings that a model brings along, such as banned tokens or a penalty: `generate` fills from them
    whatever it is not told."""
    from transformers import GenerationConfig  # it takes a second, for which no page has to wait

    own = model.lm.generation_config
    model.lm.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.lm.generation_config = own
