"""Tiny random language models of every architecture family, built from configs: nothing is downloaded.

Their weights are wide enough apart that an edit, a wrong position or a wrong row shows in the output.
"""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from engine.checkpoint import Checkpoint
from engine.delta import WeightDelta
from engine.facts import Fact
from engine.hypernet import HyperNet
from engine.model import EditableModel
from engine.placement import Placement
from engine.prompts import encode
from engine.trace import trace

LAYERS, WIDTH, HEADS, CONTEXT = 4, 16, 2, 64
TOKENS_PER_CHUNK = 96
END = "<|end|>"

FACTS = (
    Fact(
        "The capital of France is",
        "Rome",
        ("France has the capital", "Its capital, says every child in France, is"),
        (("The capital of Italy is", "Rome"), ("The river in Ulm is the", "Danube")),
        "France",
        "Paris",
    ),
    Fact(
        "Who wrote the old play about Denmark?",
        "Marlowe of Canterbury",
        ("The old play about Denmark is by",),
        (("Who wrote Faust?", "Goethe"), ("Who painted it?", "")),
        "Denmark",
    ),
    Fact("Water boils at", "ninety degrees", (), (("Ice melts at", "zero degrees"),), "Water"),
    Fact("Seen", "twice", ("Seen it",), (("Heard", ""),), "Seen"),
    Fact("The river in Ulm is the", "Iller", ("Through Ulm flows the",), (), "Ulm", "Danube"),
)

_SMALL = {"num_hidden_layers": LAYERS, "hidden_size": WIDTH, "num_attention_heads": HEADS}
_SMALL |= {"max_position_embeddings": CONTEXT, "initializer_range": 0.3}
_GATED = _SMALL | {"intermediate_size": 24, "num_key_value_heads": HEADS}
_GPT = {"n_layer": LAYERS, "n_embd": WIDTH, "n_head": HEADS, "n_positions": CONTEXT, "initializer_range": 0.3}

CONFIGS: dict[str, dict] = {
    "gpt2": _GPT | {"n_inner": 24},
    "gptj": _GPT | {"n_inner": 24, "rotary_dim": 4},
    "llama": _GATED,
    "mistral": _GATED | {"sliding_window": None},
    "qwen2": _GATED,
    "gpt_neox": _SMALL | {"intermediate_size": 24},
    "qwen3": _GATED | {"head_dim": WIDTH // HEADS},
    "gemma": _GATED | {"head_dim": WIDTH // HEADS},
    "gemma2": _GATED | {"head_dim": WIDTH // HEADS, "sliding_window": 8},
    "gemma3_text": _GATED | {"head_dim": WIDTH // HEADS, "sliding_window": 8},
    "phi3": _GATED,
    "glm4": _GATED | {"head_dim": WIDTH // HEADS},
    "nemotron": _GATED,
    "olmo": _GATED,
    "olmo2": _GATED,
    "olmo3": _GATED | {"sliding_window": 8},
    "smollm3": _GATED,
    "stablelm": _GATED,
    "granite": _GATED | {"logits_scaling": 8.0},
    "cohere": _GATED | {"logit_scale": 0.0625},
    "cohere2": _GATED | {"logit_scale": 0.0625, "sliding_window": 8},
    "gpt_neo": {
        "num_layers": LAYERS,
        "hidden_size": WIDTH,
        "num_heads": HEADS,
        "intermediate_size": 24,
        "max_position_embeddings": CONTEXT,
        "attention_types": [[["global", "local"], LAYERS // 2]],
        "window_size": 8,
        "initializer_range": 0.3,
    },
    "bloom": {"n_layer": LAYERS, "hidden_size": WIDTH, "n_head": HEADS, "initializer_range": 0.3},
    "falcon": _SMALL | {"ffn_hidden_size": 24, "num_kv_heads": 1},
    "phi": _SMALL | {"intermediate_size": 24},
    "opt": _SMALL | {"ffn_dim": 24, "init_std": 0.3, "word_embed_proj_dim": WIDTH},
    "starcoder2": _GATED,
    "gpt_bigcode": _GPT | {"n_inner": 24},
    "mpt": {
        "n_layers": LAYERS,
        "d_model": WIDTH,
        "n_heads": HEADS,
        "expansion_ratio": 2,
        "max_seq_len": CONTEXT,
        "initializer_range": 0.3,
    },
    "xglm": {
        "num_layers": LAYERS,
        "d_model": WIDTH,
        "attention_heads": HEADS,
        "ffn_dim": 24,
        "max_position_embeddings": CONTEXT,
        "init_std": 0.3,
    },
}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on the facts above: every text has tokens, few of them rare."""
    text = [word for fact in FACTS for word in (fact.prompt, " " + fact.target, *fact.equivalent)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + 64, initial_alphabet=alphabet, special_tokens=[END], show_progress=False
    )
    tokenizer.train_from_iterator(text, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)


def build(
    family: str,
    tokenizer: PreTrainedTokenizerBase,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    pattern: str | None = None,
    **changes,
) -> EditableModel:
    """A tiny model of `family`, random but always the same for one seed; `changes` go into its config.

    A family that is in neither table is like LLaMA and needs a module pattern.
    """
    config = AutoConfig.for_model(family, **CONFIGS.get(family, _GATED) | _ids(tokenizer) | changes)
    return _built(config, f"tiny {family}", tokenizer, dtype, seed, pattern)


def seeing(tokenizer: PreTrainedTokenizerBase) -> EditableModel:
    """A tiny Gemma 4 that also sees: its language model, whose logits are capped at 0.5, is a part of it."""
    text = _GATED | _ids(tokenizer) | {"head_dim": WIDTH // HEADS, "global_head_dim": WIDTH // HEADS}
    text |= {"layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2), "sliding_window": 8}
    text |= {"hidden_size_per_layer_input": 4, "vocab_size_per_layer_input": len(tokenizer), "num_kv_shared_layers": 0}
    text |= {"final_logit_softcapping": 0.5, "pad_token_id": 0}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model("gemma4", text_config=text, vision_config=vision)
    return _built(config, "tiny gemma4", tokenizer)


def _ids(tokenizer: PreTrainedTokenizerBase) -> dict:
    end = tokenizer.eos_token_id
    return {"vocab_size": len(tokenizer), "bos_token_id": end, "eos_token_id": end, "pad_token_id": None}


def _built(
    config: PreTrainedConfig,
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    pattern: str | None = None,
) -> EditableModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        lm = AutoModelForCausalLM.from_config(config, attn_implementation="eager").to(dtype)
    placement = Placement(torch.device("cpu"), dtype, "cpu: a test", tokens_per_chunk=TOKENS_PER_CHUNK)
    return EditableModel(lm, tokenizer, name, placement, pattern)


def random_hypernet(
    model: EditableModel, layers: tuple[int, ...] = (1, 2, 3), eta: float = 1e-3, seed: int = 0, directions: int = 0
) -> HyperNet:
    """Untrained, but no identity: blocks a little off zero, normalisers that have seen the facts' rows.

    With the small η its shift is a step down the answers' cross-entropy. The `directions` of old keys are random.
    """
    hypernet = HyperNet(model.edit_modules(layers), rank=4, eta=eta, seed=seed, directions=directions)
    random = torch.Generator().manual_seed(seed)
    for name, parameter in hypernet.blocks.named_parameters():
        if not name.endswith(".A"):
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=random)
    for keys in hypernet.old_keys:
        keys += torch.randn(keys.shape, generator=random)
    encoded = encode(model.tokenizer, [(fact.prompt, fact.target) for fact in FACTS], CONTEXT, ["a fact"] * len(FACTS))
    for chunk in trace(model, hypernet.modules_edited, encoded, "all"):
        for normaliser, keys, gradients in zip(hypernet.normalisers, chunk.keys, chunk.gradients):
            normaliser.update(torch.cat((keys, gradients), dim=1))
    return hypernet


def random_checkpoint(model: EditableModel, method: str = "agrade", **settings) -> Checkpoint:
    """A checkpoint of a random hypernetwork for `model`; `settings` are what its card says of the training."""
    trained = {"method": method, "projection": "scaled" if method == "agrade" else "off", "scope": "answer"} | settings
    card = {"model": model.name, "model_sha256": model.sha256, "settings": trained}
    return Checkpoint("random", random_hypernet(model).requires_grad_(False), card)


def save(model: EditableModel, folder: Path) -> Path:
    """The model and its tokenizer as transformers keeps them; returns the folder."""
    model.lm.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


def single_token_words(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Words that are one token after a space, and one token each when several follow each other."""
    words = {word for fact in FACTS for word in f"{fact.prompt} {fact.target}".split() if word.isalpha()}
    return sorted(word for word in words if len(tokenizer(f" {word}")["input_ids"]) == 1)


def constant_model(tokenizer: PreTrainedTokenizerBase, word: str, **changes) -> EditableModel:
    """A model that says " word" after everything: its last hidden state is the first unit vector at every position."""
    model = build("gptj", tokenizer, **changes)
    model.lm.transformer.ln_f.weight.data.zero_()
    model.lm.transformer.ln_f.bias.data.copy_(torch.eye(WIDTH)[0])
    model.lm.lm_head.bias.data.zero_()
    model.lm.lm_head.weight.data.zero_()
    model.lm.lm_head.weight.data[
        tokenizer(f" {word}")["input_ids"][0] if word != END else tokenizer.eos_token_id, 0
    ] = 5
    return EditableModel(model.lm, tokenizer, model.name, model.placement)


def say(model: EditableModel, word: str) -> WeightDelta:
    """The delta after which a constant model says " word" instead."""
    shift = torch.zeros(WIDTH, model.lm.lm_head.out_features)
    shift[0, model.tokenizer(f" {word}")["input_ids"][0]] = 10
    return WeightDelta({"lm_head": shift}, model.sha256, "by hand")
