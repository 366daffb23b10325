"""Prompts cut in two and run behind their own past say what they say whole."""

import pytest
import torch

from engine.editors import EDITORS
from engine.errors import ModelError
from engine.forward import answer_logits, trunk
from engine.model import FAMILIES
from engine.past import behind, split_prompts
from engine.prompts import EncodedPrompt, collate, encode
from tests.engine import tiny

PAIRS = [("Seen", "it"), ("The capital of France is", "Paris"), ("Who wrote the old play about Denmark?", "Shakespeare")]
CUTS = [0, 3, 5]


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_rests_behind_their_pasts_are_the_whole_prompts(tiny_model, family, layer):
    """Pasts and rests of several lengths in one batch, one of them without any past."""
    model = tiny_model(family)
    encoded = encode(model.tokenizer, PAIRS, 64, [prompt for prompt, _ in PAIRS])
    whole = collate(encoded, range(3), "cpu")
    parts = split_prompts(model, whole, layer, CUTS)
    assert [past.length for past, _ in parts] == CUTS
    for row, (cut, (_, hidden)) in enumerate(zip(CUTS, parts)):
        torch.testing.assert_close(hidden, trunk(model, whole, layer)[row, cut : whole.lengths[row]])
    order = [2, 0, 1]
    rests = [EncodedPrompt(item.ids[cut:], item.answer) for item, cut in zip(encoded, CUTS)]
    batch = collate(rests, order, "cpu")
    hidden = torch.nn.utils.rnn.pad_sequence([parts[index][1] for index in order], batch_first=True)
    with torch.no_grad():
        wanted = answer_logits(model, collate(encoded, order, "cpu"))
        for _ in range(2):  # a pass leaves the pasts as they were
            told = behind(model, [parts[index][0] for index in order], batch, layer)
            found = answer_logits(model, batch, layer, hidden, told)
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_prompts_without_any_past(tiny_model):
    model = tiny_model("llama")
    encoded = encode(model.tokenizer, PAIRS, 64, [prompt for prompt, _ in PAIRS])
    batch = collate(encoded, range(3), "cpu")
    pasts, hidden = zip(*split_prompts(model, batch, 1, [0, 0, 0]))
    entering = torch.nn.utils.rnn.pad_sequence(hidden, batch_first=True)
    with torch.no_grad():
        found = answer_logits(model, batch, 1, entering, behind(model, pasts, batch, 1))
        torch.testing.assert_close(found, answer_logits(model, batch), rtol=1e-4, atol=1e-4)


def test_gradients_flow_through_the_rest(tiny_model):
    """The gradient at the rest's entry is that of the whole prompt there."""
    model = tiny_model("llama")
    encoded = encode(model.tokenizer, PAIRS[1:2], 64, ["it"])
    batch = collate(encoded, [0], "cpu")
    [(past, hidden)] = split_prompts(model, batch, 1, [3])
    rest = collate([EncodedPrompt(encoded[0].ids[3:], encoded[0].answer)], [0], "cpu")
    hidden = hidden[None].requires_grad_()
    answer_logits(model, rest, 1, hidden, behind(model, [past], rest, 1)).log_softmax(-1)[:, 7].sum().backward()
    entering = trunk(model, batch, 1).clone().requires_grad_()
    answer_logits(model, batch, 1, entering).log_softmax(-1)[:, 7].sum().backward()
    torch.testing.assert_close(hidden.grad[0], entering.grad[0, 3:], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("family", "pattern", "changes"),
    [
        ("mamba", "backbone.layers.{}.mixer.out_proj", {}),
        ("qwen3_next", "model.layers.{}.mlp.shared_expert.down_proj", {"head_dim": 8}),
        ("lfm2", "model.layers.{}.feed_forward.w2", {"layer_types": ["conv", "full_attention"] * 2}),
    ],
)
def test_layers_without_keys_are_named_before_any_work(tiny_tokenizer, monkeypatch, family, pattern, changes):
    model = tiny.build(family, tiny_tokenizer, pattern=pattern, **changes)
    batch = collate(encode(model.tokenizer, PAIRS, 64, ["it"] * 3), range(3), "cpu")
    said = f"z. need attention.*in every layer, and tiny {family} .{family}. has layers that keep something else"
    with pytest.raises(ModelError, match=said):
        split_prompts(model, batch, 1, CUTS)
    monkeypatch.setattr("engine.editors.memit.measure", None)  # not called
    for method in ("memit", "pmet", "emmet", "alphaedit"):
        with pytest.raises(ModelError, match=said):
            EDITORS[method](EDITORS[method].Settings()).edit(model, tiny.FACTS)
