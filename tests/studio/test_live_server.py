"""The running studio over HTTP, as programs use it: gradio_client against `python app.py` on a tiny model."""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from engine.fact_readers import write_csv
from engine.facts import Fact
from studio.store import Store
from tests.engine.tiny import CONTEXT, FACTS
from tests.studio.live import PATIENCE_SECONDS, POLL_SECONDS, LiveStudio, serve

pytestmark = pytest.mark.live
ORIGINAL, EDITED = "original weights", f"edited: {len(FACTS)} facts by AGRADE"
SEEN = {"facts": [{"prompt": "Seen", "target": "twice"}]}
PROMPT = FACTS[0].prompt
LONG = "word " * (2 * CONTEXT)


@pytest.fixture(scope="module")
def live(model_folder, hypernet_folder, tmp_path_factory) -> Iterator[LiveStudio]:
    """The studio with its model loaded. Every test works in a workspace of its own."""
    folder = tmp_path_factory.mktemp("live")
    with serve(folder, "--model", model_folder, "--device", "cpu", "--hypernet", hypernet_folder) as studio:
        studio.wait_for_the_model()
        yield studio


@pytest.fixture
def client(live) -> Iterator[Client]:
    with live.client() as client:
        yield client


@pytest.fixture(scope="module")
def facts_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("facts") / "facts.csv"
    write_csv(FACTS, path)
    return path


def probe(client: Client, prompt: str = PROMPT) -> dict:
    return client.predict(prompt=prompt, api_name="/probe")


def upload(client: Client, path: Path) -> dict:
    return client.predict(file=handle_file(path), api_name="/upload")


def apply(client: Client, **given) -> dict:
    """Apply, polled to its end."""
    job = client.submit(**given, api_name="/apply")
    give_up = time.monotonic() + PATIENCE_SECONDS
    while not job.done():
        assert time.monotonic() < give_up, "The edit did not end."
        time.sleep(POLL_SECONDS)
    return job.result()


def refusal(function: Callable, *given, **named) -> str:
    """The sentence with which a call is refused."""
    with pytest.raises(AppError) as refused:
        function(*given, **named)
    return str(refused.value)


def step(client: Client, name: str) -> str:
    """The badge after undo, redo or reset."""
    return client.predict(api_name=f"/{name}")["badge"]


def runs(client: Client, **filters) -> list[dict]:
    return client.predict(**filters, api_name="/history")


def test_upload_apply_probe_undo_redo_and_reset(client, facts_file):
    found = upload(client, facts_file)
    warnings = found.pop("warnings")
    assert found == {"facts": len(FACTS), "form": "studio", "source": "facts.csv", "errors": []}
    assert len(warnings) == 1 and "“The river in Ulm is the” is edited in row 5" in warnings[0]["message"]
    before = probe(client)
    assert before["badge"] == ORIGINAL and before["after"] is None and len(before["before"]["top"]) == 5

    result = apply(client)
    assert result["badge"] == EDITED and result["n_facts"] == len(FACTS)
    assert len(result["instances"]) == sum(1 + len(fact.equivalent) + len(fact.unrelated) for fact in FACTS)
    metrics = {(one["name"], one["protocol"]): one for one in result["metrics"]}
    assert metrics["ES", "exact"]["n"] == len(FACTS) and {"before", "value", "low", "high"} <= set(metrics["ES", "exact"])
    kept = runs(client)[0]
    assert (kept["id"], kept["status"], kept["method"]) == (result["run"], "done", "agrade")

    edited = probe(client)
    assert edited["before"] == before["before"], "the shared weights are the original ones"
    assert edited["after"]["top"] != edited["before"]["top"]
    assert step(client, "undo") == ORIGINAL
    undone = probe(client)
    assert undone["after"] is None and undone["before"] == before["before"]
    assert step(client, "redo") == EDITED
    assert probe(client)["after"] == edited["after"]
    assert step(client, "reset") == ORIGINAL
    assert probe(client)["after"] is None
    assert step(client, "redo") == EDITED


def test_undo_goes_back_through_several_edits(client):
    for count in (1, 2):
        apply(client, facts=[{"prompt": fact.prompt, "target": fact.target} for fact in FACTS[:count]])
    badges = [step(client, name) for name in ("undo", "undo", "undo", "redo", "redo", "redo", "reset")]
    one, two = "edited: 1 fact by AGRADE", "edited: 2 facts by AGRADE"
    assert badges == [one, ORIGINAL, ORIGINAL, one, two, two, ORIGINAL]


def test_nobody_sees_anothers_edit(live, facts_file):
    with ExitStack() as stack:
        mine, other = (stack.enter_context(live.client()) for _ in range(2))
        upload(mine, facts_file)
        apply(mine)
        theirs = probe(other)
        assert theirs["badge"] == ORIGINAL and theirs["after"] is None
        apply(other, facts=[{"prompt": "Seen", "target": "thrice"}])
        assert step(other, "undo") == ORIGINAL
        assert probe(mine)["badge"] == EDITED
        with pytest.raises(AppError, match="There is no fact to edit"):
            apply(stack.enter_context(live.client()))


def test_edits_asked_for_at_once_are_done_one_after_the_other(live):
    facts = [{"prompt": fact.prompt, "target": fact.target} for fact in FACTS]
    with ExitStack() as stack:
        clients = [stack.enter_context(live.client()) for _ in range(3)]
        jobs = [client.submit(facts=facts, generate=2, api_name="/apply") for client in clients]
        results = [job.result(timeout=PATIENCE_SECONDS) for job in jobs]
        assert [result["badge"] for result in results] == [EDITED] * 3
        assert len({result["run"] for result in results}) == 3
        after = [probe(client)["after"] for client in clients]
        assert after[0] == after[1] == after[2]


REFUSED = {
    "empty": (b"", "facts.csv: the file is empty"),
    "blank": (b" \r\n\n", "the file is empty"),
    "wrong encoding": ("prompt,target\nThe café is in,Köln\n".encode("latin-1"), r"not UTF-8: byte 21 \(line 2\) is 0xE9"),
    "missing column": (b"prompt,answer\nThe capital of France is,Rome\n", "Found: prompt, answer. Needed: prompt and target"),
    "not a table": (b"Dear all,\nplease edit the capital of France.\n", "its fields are not known"),
    "binary": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "not text: a NUL byte at byte 8"),
    "open quote": (b'prompt,target\n"The capital of France is,Rome\n', "not a readable CSV from line 2 on"),
}
ROWS = {
    "blank prompt": (b"prompt,target\nSeen,twice\n ,Rome\n", r"Row 2 \(record 2 after the header, line 3\): prompt is blank"),
    "blank target": (b"prompt,target\nSeen,twice\nWater boils at,\n", "Row 2 .*target is blank"),
    "contradiction": (
        b"prompt,target\nSeen,twice\nHeard,once\nSeen,thrice\n",
        "Row 3 .*contradicts row 1: the same prompt with the targets “twice” and “thrice”",
    ),
    "too many cells": (b"prompt,target\nSeen, and heard,twice\n", "Row 1 .*3 cells, but the header names 2"),
    "answers amiss": (
        b"prompt,target,unrelated,unrelated_answer\nSeen,twice,Heard || Felt,once || never || often\n",
        r"Row 1 .*3 answer\(s\) for 2 prompt\(s\)",
    ),
}
UNFIT = {
    "prompt too long": (f"prompt,target\nSeen,twice\n{LONG},Rome\n".encode(), "Row 2, prompt: .*the model's context holds"),
    "target too long": (f"prompt,target\nSeen,{LONG}\n".encode(), "Row 1, .*the model's context holds"),
    "equivalent too long": (
        f"prompt,target,equivalent\nHeard,once,\nSeen,twice,Once || {LONG}\n".encode(),
        "Row 2, .*the model's context holds",
    ),
}


def still_original_and_alive(client: Client, before: dict) -> None:
    """Nothing is on, the weights answer as they did, and an edit goes through."""
    assert probe(client) == before
    assert apply(client, facts=[{"prompt": "Seen", "target": "thrice"}])["badge"] == "edited: 1 fact by AGRADE"


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_cannot_be_read_is_refused(client, tmp_path, name):
    content, said = REFUSED[name]
    path = tmp_path / "facts.csv"
    path.write_bytes(content)
    before = probe(client)
    with pytest.raises(AppError, match=said):
        upload(client, path)
    still_original_and_alive(client, before)


def test_a_file_of_100_megabytes_is_refused(client, tmp_path):
    path = tmp_path / "facts.csv"
    with path.open("wb") as file:
        file.truncate(100_000_000)
    before = probe(client)
    with pytest.raises(AppError, match="facts.csv: .*MB"):
        upload(client, path)
    still_original_and_alive(client, before)


@pytest.mark.parametrize("name", ROWS)
def test_a_bad_row_is_named_at_the_upload_and_stops_the_edit(client, tmp_path, name):
    content, said = ROWS[name]
    path = tmp_path / "facts.csv"
    path.write_bytes(content)
    before = probe(client)
    problem, *others = upload(client, path)["errors"]
    assert not others and f"Row {problem['row']} " in problem["message"]
    with pytest.raises(AppError, match=f"(?s)1 problem to mend first.*{said}"):
        apply(client)
    still_original_and_alive(client, before)


@pytest.mark.parametrize("name", UNFIT)
def test_facts_that_do_not_fit_the_model_are_named_by_their_row(client, tmp_path, name):
    content, said = UNFIT[name]
    path = tmp_path / "facts.csv"
    path.write_bytes(content)
    before = probe(client)
    assert not upload(client, path)["errors"]
    with pytest.raises(AppError, match=said):
        apply(client)
    failed = runs(client)[0]
    assert failed["status"] == "failed" and "context" in failed["error"]
    still_original_and_alive(client, before)


def test_published_files_may_contradict_themselves(client, tmp_path):
    path = tmp_path / "counterfact.json"
    path.write_text('[{"prompt": "Seen", "target_new": "twice"}, {"prompt": "Seen", "target_new": "thrice"}]')
    found = upload(client, path)
    assert (found["facts"], found["form"], found["errors"]) == (2, "counterfact", [])
    assert "contradicts row 1" in found["warnings"][0]["message"]
    assert apply(client)["n_facts"] == 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"method": "wishful"}, "wishful"),
        ({"method": "malmen"}, "MALMEN needs a hypernetwork"),
        ({"settings": {"projektion": "off"}}, "no setting projektion"),
        ({"hypernet": "no-such-folder"}, "There is no hypernetwork .no-such-folder."),
        ({"facts": [{"prompt": "Seen"}]}, "its fields are not known"),
        ({"facts": [{"prompt": "Seen", "target": ["twice"]}]}, "Row 1: target holds a list"),
        ({"settings": "x"}, "settings is 'x': give it as dict"),
        ({"settings": {"rounds": "1"}}, "AGRADE cannot take rounds='1'"),
        ({"generate": "x"}, "generate is 'x': give a whole number from 0 on"),
        ({"generate": -1}, "generate is -1: give a whole number from 0 on"),
    ],
    ids=lambda given: "-".join(given) if isinstance(given, dict) else "",
)
def test_an_edit_that_cannot_be_is_a_sentence(client, given, said):
    before = probe(client)
    facts = {"facts": [{"prompt": "Seen", "target": "twice"}]}
    with pytest.raises(AppError, match=said):
        apply(client, **facts | given)
    still_original_and_alive(client, before)


@pytest.mark.parametrize("prompt", ["", "   ", LONG], ids=["empty", "blank", "long"])
def test_a_probe_that_cannot_be_answered_is_a_sentence(client, prompt):
    said = refusal(probe, client, prompt)
    assert "prompt" in said and "Traceback" not in said
    assert probe(client)["badge"] == ORIGINAL


def test_texts_come_back_as_they_were(client):
    fact = Fact("“Où est” <b>Ulm</b> & 北京?", "Ünïcödé 🙂 \"quoted\"", ("Où, || donc?",), (("Größe", "1,80 m"),))
    record = {"prompt": fact.prompt, "target": fact.target, "equivalent": [*fact.equivalent], "unrelated": ["Größe"]}
    result = apply(client, facts=[record | {"unrelated_answer": ["1,80 m"]}])
    assert [one["prompt"] for one in result["instances"]] == [fact.prompt, *fact.equivalent, "Größe"]
    assert result["instances"][0]["target"] == fact.target
    assert [one["id"] for one in runs(client, search="Ünïcödé")] == [result["run"]]


def test_every_run_is_kept_with_its_state(live, client):
    with pytest.raises(AppError):
        apply(client, facts=[{"prompt": LONG, "target": "Rome"}])
    done = apply(client, facts=[{"prompt": "Seen", "target": "never"}])["run"]
    probe(client)
    with Store(live.db) as store:
        last, failed = store.runs(limit=2)
        assert (last["id"], last["status"], failed["status"]) == (done, "done", "failed")
        assert store.run(done).probes[0][0] == PROMPT


def test_only_this_machine_can_connect(live):
    listening = [one.laddr.ip for one in psutil.Process(live.process.pid).net_connections() if one.status == "LISTEN"]
    assert set(listening) == {"127.0.0.1"}
    addresses = {one.address for found in psutil.net_if_addrs().values() for one in found if one.family == socket.AF_INET}
    for address in addresses - {"127.0.0.1"}:
        with pytest.raises(OSError):
            socket.create_connection((address, live.port), timeout=5).close()


def test_a_model_that_is_not_there_is_told_whenever_it_is_needed(tmp_path):
    missing = tmp_path / "no-such-model"
    with serve(tmp_path / "studio", "--model", missing) as studio, studio.client() as client:
        give_up = time.monotonic() + PATIENCE_SECONDS
        while "not loaded yet" in (said := refusal(probe, client)):
            assert time.monotonic() < give_up, studio.printed()
            time.sleep(POLL_SECONDS)
        assert str(missing) in said
        assert refusal(apply, client, facts=[{"prompt": "Seen", "target": "twice"}]) == said


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for another process.")
def test_it_is_ended_without_a_trace_and_a_new_start_finds_the_runs_again(
    model_folder, hypernet_folder, facts_file, tmp_path, monkeypatch
):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    arguments = ("--model", model_folder, "--device", "cpu", "--hypernet", hypernet_folder)
    with serve(tmp_path, *arguments) as studio:
        studio.wait_for_the_model()
        with studio.client() as client:
            upload(client, facts_file)
            apply(client)
            run = apply(client, facts=[{"prompt": "Seen", "target": "twice"}])["run"]
        assert list(scratch.rglob("*.safetensors"))
        _end(studio, signal.SIGINT, scratch)
    with serve(tmp_path, *arguments) as studio:
        with studio.client() as client:
            assert [one["id"] for one in runs(client)] == [run, run - 1]
            studio.wait_for_the_model()
            upload(client, facts_file)
        _end(studio, signal.SIGTERM, scratch)


def _end(studio: LiveStudio, number: signal.Signals, scratch: Path) -> None:
    assert list(scratch.rglob("*.csv"))
    studio.process.send_signal(number)
    assert studio.process.wait(timeout=60) == 0
    assert not list(scratch.iterdir()), "what was uploaded may be private"


def test_methods_are_compared_and_reopened_and_the_own_edit_stays(client, facts_file):
    upload(client, facts_file)
    settings = {"ft": {"steps": 3}, "ultraedit": {"layers": "1-3"}}
    asked = {"methods": ["agrade", "agrade:no-c", "ft", "malmen", "ultraedit"], "settings": settings, "generate": 1}
    job = client.submit(**asked, sizes=[1], api_name="/compare")
    result = job.result(timeout=PATIENCE_SECONDS)
    entries = {one["entry"]: one for one in result["methods"]}
    assert list(entries) == asked["methods"]
    assert "needs a hypernetwork" in entries["malmen"]["error"] and not entries["malmen"]["metrics"]
    for name in ("agrade", "agrade:no-c", "ft", "ultraedit"):
        metrics = {(one["name"], one["protocol"]): one for one in entries[name]["metrics"]}
        assert metrics["ES", "exact"]["n"] == len(FACTS) and entries[name]["seconds"] > 0
        assert metrics["ES", "generated"]["n"] == 1
        assert [one["n_facts"] for one in entries[name]["sizes"]] == [1]
    assert probe(client)["badge"] == ORIGINAL
    kept = runs(client)[0]
    assert (kept["id"], kept["kind"], kept["status"]) == (result["run"], "compare", "done")
    with pytest.raises(AppError, match="Unknown method .wishful."):
        client.predict(methods=["wishful"], api_name="/compare")


def test_a_comparison_that_no_method_could_do_tells_a_program_why(client):
    asked = {"methods": ["malmen", "memit"], "facts": [{"prompt": "it rains in", "target": "Ulm"}], "generate": 0}
    said = refusal(client.predict, **asked, api_name="/compare")
    assert "MALMEN: MALMEN needs a hypernetwork" in said and "MEMIT: " in said and "Row 1: the subject is missing" in said


def test_sizes_that_are_left_out_are_told(client):
    asked = {"methods": ["ultraedit"], "facts": [{"prompt": "Seen", "target": "twice"}], "sizes": [1, 5], "generate": 0}
    assert "No sweep at 5" in client.predict(**asked, api_name="/compare")["notes"][0]


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("upload", {"file": "/somewhere/facts.csv"}, "send it with gradio_client's handle_file"),
        ("probe", {"prompt": 5}, "prompt is 5: give it as str"),
        ("history", {"page": "x"}, "page is 'x': give it as int"),
        ("history", {"search": 5}, "search is 5: give it as str"),
        ("history", {"kind": "edits"}, "kind is 'edits': give one of edit, "),
        ("history", {"status": "ok"}, "status is 'ok': give one of running, done, failed, cancelled"),
        ("compare", {"methods": ["ft"], "settings": {"lora": {"rank": 2}}, **SEEN}, "settings is given for lora, which is"),
        ("compare", {"methods": ["ft"], "settings": {"agrade:no-c": {}}, **SEEN}, "an ablation has its method's"),
        ("compare", {"methods": ["ft"], "hypernets": {"ft": "agrade"}, **SEEN}, "hypernets is given for ft: give it for agrade"),
        ("train", {"files": [], "method": "ft"}, "method is 'ft': give one of agrade, malmen, mend"),
        ("train", {"files": [], "settings": {"method": "malmen"}}, "settings say 'malmen', method 'agrade'"),
    ],
)
def test_an_argument_of_another_kind_is_refused_with_a_sentence(client, name, given, said):
    assert said in refusal(client.predict, api_name=f"/{name}", **given)
