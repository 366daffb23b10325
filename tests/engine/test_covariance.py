"""C is the mean of kkᵀ over the text, measured once, kept part by part, and bound to what it was measured on."""

import copy
import hashlib
import shutil

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from torch.testing import assert_close

from engine import covariance
from engine.covariance import Text, measure, measuring, read
from engine.errors import Cancelled, EditingError, FactError, ModelError, NonFiniteError
from engine.work import Work
from tests.engine import locate, tiny
from tests.engine.test_editors import chunked

TOKENS = 320  # rows of 64, the tiny models' context; two to a part


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AGRADE_STUDIO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(covariance, "PART_ROWS", 2)
    return tmp_path / "cache"


@pytest.fixture
def model(tiny_model):
    return tiny_model("llama")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("The river in Ulm is the Danube, and the capital of France is Paris. Wörter auch. " * 9, "utf-8")
    return str(path)


def rows(text: Text) -> list[list[int]]:
    return [row.tolist() for part in range(text.parts) for row in text.part(part)]


def forbid(*_, **__):
    raise AssertionError("the model ran")


@pytest.mark.parametrize("drawn", [True, False])
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_covariance_is_the_mean_of_every_keys_outer_product(tiny_model, family, drawn, file):
    model = tiny_model(family)
    modules = model.edit_modules([0, 3])
    text = Text(model, "" if drawn else file, TOKENS, 0)
    measure(model, modules, text)
    for module in modules:
        found = read(model, module, text)
        assert found.dtype is torch.float64
        wanted = locate.covariance(model, rows(text), model.lm.get_submodule(module.name))
        assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_file_is_read_as_it_is_and_no_further_than_asked(model, file):
    tokens = model.tokenizer(open(file, encoding="utf-8").read())["input_ids"]
    assert sum(rows(Text(model, file, 10**6, 0)), []) == tokens
    assert sum(rows(Text(model, file, 100, 0)), []) == tokens[:100]


def test_rows_of_a_file_open_as_prompts_do(tiny_tokenizer, model, file):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    opening = [("<s>", tokenizer.bos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=opening)
    opened = tiny.build("llama", tokenizer)
    text, plain = Text(opened, file, 100, 0), Text(model, file, 100, 0)
    assert [len(row) for row in rows(text)] == text.lengths == [64, 1 + 100 - 63]
    assert all(row[0] == tokenizer.bos_token_id for row in (*rows(text), *rows(Text(opened, "", TOKENS, 0))))
    assert sum((row[1:] for row in rows(text)), []) == sum(rows(plain), [])
    assert text.sha256 != plain.sha256


def test_the_caches_name_of_a_file_without_an_opening_is_what_it_was(model, file):
    """A measurement is found again by it after the studio's update."""
    tokens = torch.tensor(model.tokenizer(open(file, encoding="utf-8").read())["input_ids"][:100])
    kept = hashlib.sha256(b"agrade-studio covariance 1 64 torch.float32 " + tokens.numpy().tobytes()).hexdigest()
    assert Text(model, file, 100, 0).sha256 == kept


def test_drawn_text_is_the_seeds_and_each_part_its_own(model, cache):
    one = rows(Text(model, "", TOKENS, 0))
    assert [len(row) for row in one] == [64] * 5
    shutil.rmtree(cache)
    assert one == rows(Text(model, "", TOKENS, 0)) != rows(Text(model, "", TOKENS, 1))
    assert len({tuple(row) for row in one}) == 5
    assert model.tokenizer.eos_token_id not in {row[0] for row in one}


def test_chunks_of_the_model_change_nothing_but_rounding(model, cache):
    [module] = model.edit_modules([1])
    found = []
    for tokens in (1, 10**6):
        text = Text(chunked(model, tokens), "", TOKENS, 0)
        measure(text.model, [module], text)
        found.append(read(model, module, text))
        for kept in cache.rglob("*.safetensors"):
            kept.unlink()
    assert_close(*found, rtol=1e-5, atol=1e-7)


def test_measured_once_and_found_again(model, monkeypatch):
    text, modules = Text(model, "", TOKENS, 0), model.edit_modules([1, 2])
    measure(model, modules, text)
    monkeypatch.setattr(covariance, "states_at", forbid)
    monkeypatch.setattr(covariance, "sample", forbid)
    measure(model, modules, Text(model, "", TOKENS, 0))
    measure(model, modules[:1], Text(model, "", TOKENS, 0))
    for other in (Text(model, "", TOKENS, 1), Text(model, "", TOKENS + 64, 0)):
        with pytest.raises(AssertionError, match="the model ran"):
            measure(model, modules, other)
    with pytest.raises(AssertionError, match="the model ran"):
        measure(model, model.edit_modules([1, 3]), text)


def test_drawn_text_is_kept_for_other_modules(model, cache, monkeypatch):
    text, modules = Text(model, "", TOKENS, 0), model.edit_modules([1, 3])
    before = measuring(model, modules[:1], text)
    assert (before.forward, before.steps) == (TOKENS * (2 + model.layer_count), 3 * 64)
    measure(model, modules[:1], text)
    assert measuring(model, modules[:1], text) == Work()
    after = measuring(model, modules, text)
    assert (after.forward, after.steps) == (TOKENS * 4, 0)
    whole = rows(text)
    kept = next(cache.rglob("text-1.safetensors"))
    kept.write_bytes(kept.read_bytes()[:50])
    assert rows(text) == whole, "a damaged part is drawn again"
    monkeypatch.setattr(covariance, "sample", forbid)
    measure(model, modules, Text(model, "", TOKENS, 0))
    wanted = locate.covariance(model, whole, model.lm.get_submodule(modules[1].name))
    assert_close(read(model, modules[1], text), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("drawn", [True, False])
def test_cancelled_measurement_goes_on_where_it_stopped_to_the_same_bits(model, file, drawn, cache, monkeypatch):
    text, modules = Text(model, "" if drawn else file, TOKENS, 0), model.edit_modules([1, 2])
    measure(model, modules, text)
    whole = [read(model, module, text) for module in modules]
    for kept in cache.rglob("*.safetensors"):
        kept.unlink()

    def cancel(_stage, done, _total):
        if done > 200:  # in the second part
            raise Cancelled

    with pytest.raises(Cancelled):
        measure(model, modules[:1], text, cancel)
    calls = []
    measure(model, modules[:1], text, lambda *call: calls.append(call))
    assert calls[0] == ("Covariance", 128, 320) and calls[-1] == ("Covariance", 320, 320)
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)
    measure(model, modules, text)  # the other module is still to be measured, from its beginning
    assert all(torch.equal(read(model, module, text), wanted) for module, wanted in zip(modules, whole))
    assert not [file for file in cache.rglob("*") if file.is_file() and file.suffix != ".safetensors"]


def test_long_measurements_are_kept_on_the_way(model, monkeypatch):
    monkeypatch.setattr(covariance, "SAVE_SECONDS", 0)
    saved = []
    monkeypatch.setattr(covariance._Sum, "save", lambda one: saved.append(one.parts))
    measure(model, model.edit_modules([1]), Text(model, "", TOKENS, 0))
    assert saved == [1, 2, 3, 3]


def test_another_process_that_measures_the_same_meanwhile_changes_nothing(model, cache, monkeypatch):
    text, (module,) = Text(model, "", TOKENS, 0), model.edit_modules([2])
    measure(model, [module], text)
    alone = read(model, module, text)
    shutil.rmtree(cache)

    def stop(stage, done, total):
        if done >= total // 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        measure(model, [module], text, stop)  # so that there is a sum to go on from
    own_part = covariance._add_part

    def other_first(*arguments):
        monkeypatch.setattr(covariance, "_add_part", own_part)
        measure(model, [module], Text(model, "", TOKENS, 0))  # to its end
        own_part(*arguments)

    monkeypatch.setattr(covariance, "_add_part", other_first)
    measure(model, [module], text)
    assert_close(read(model, module, text), alone, rtol=0, atol=0)


def test_a_slower_process_does_not_take_back_what_another_has_measured(model, cache, monkeypatch):
    text, (module,) = Text(model, "", TOKENS, 0), model.edit_modules([2])
    own_part = covariance._add_part

    def other_first(*arguments):
        monkeypatch.setattr(covariance, "_add_part", own_part)
        measure(model, [module], Text(model, "", TOKENS, 0))  # to its end
        own_part(*arguments)

    def stop(stage, done, total):
        if done >= total // 2:
            raise Cancelled

    monkeypatch.setattr(covariance, "_add_part", other_first)
    with pytest.raises(Cancelled):
        measure(model, [module], text, stop)
    whole = read(model, module, text)
    assert measuring(model, [module], text) == Work()
    (text.folder / f"{module.name}.safetensors").unlink()
    with pytest.raises(ModelError, match="no longer whole in .* Edit again"):
        read(model, module, text)
    measure(model, [module], text)
    assert_close(read(model, module, text), whole, rtol=0, atol=0)


def test_damaged_file_is_measured_anew(model, cache):
    text, [module] = Text(model, "", TOKENS, 0), model.edit_modules([1])
    measure(model, [module], text)
    whole = read(model, module, text)
    [kept] = cache.rglob("model*.safetensors")
    kept.write_bytes(kept.read_bytes()[:100])
    measure(model, [module], text)
    assert torch.equal(read(model, module, text), whole)


def test_texts_that_cannot_be_used_are_named(model, tmp_path):
    modules = model.edit_modules([1])
    with pytest.raises(FactError, match="nowhere.txt could not be read: .*Name a text file in UTF-8, or none"):
        measure(model, modules, Text(model, "nowhere.txt", TOKENS, 0))
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(FactError, match="empty.txt is empty: name a file with text in it"):
        measure(model, modules, Text(model, str(tmp_path / "empty.txt"), TOKENS, 0))
    (tmp_path / "latin.txt").write_bytes("Wörter".encode("latin-1"))
    with pytest.raises(FactError, match="latin.txt could not be read"):
        measure(model, modules, Text(model, str(tmp_path / "latin.txt"), TOKENS, 0))
    (tmp_path / "short.txt").write_text("Ulm")
    with pytest.raises(EditingError, match="keys 24 wide needs a text of at least as many tokens; this one has 2"):
        measure(model, modules, Text(model, str(tmp_path / "short.txt"), TOKENS, 0))


def test_keys_that_overflow_and_a_cache_that_cannot_be_written_are_named(tiny_tokenizer, file, cache):
    model = tiny.build("llama", tiny_tokenizer)
    cache.write_text("a file where the folder should be")
    with pytest.raises(ModelError, match="could not be kept in .*Make room there.*AGRADE_STUDIO_CACHE"):
        measure(model, model.edit_modules([1]), Text(model, file, TOKENS, 0))
    model.lm.model.layers[0].mlp.up_proj.weight.data.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="keys of model.layers.1.mlp.down_proj overflow.*float32"):
        measure(model, model.edit_modules([1]), Text(model, file, TOKENS, 0))
