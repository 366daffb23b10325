"""The page as it is made: without what is slow and not needed yet, once, and its events as quick as a person."""

import subprocess
import sys

from gradio import Blocks
from gradio.routes import App

from studio.layout import build
from studio.quick_gradio import described_once
from studio.store import Store
from studio.studio import Studio
from tests.studio.live import ROOT


def test_the_page_is_made_without_what_only_the_model_needs():
    made = "import app, sys; from studio.layout import build; print('transformers' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", made], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout == "False\n", "transformers takes a second of the studio's start"


def test_the_last_of_several_quick_choices_is_answered(tmp_path):
    studio = Studio(Store(tmp_path / "studio.db"), None, "studio")
    page = build(studio)
    studio.close()
    found = {
        (page.blocks[target].elem_id, event): (function.trigger_mode, function.concurrency_limit)
        for function in page.fns.values() if function.fn for target, event in function.targets if target in page.blocks
    }  # fmt: skip
    inputs = {key: mode for key, (mode, _) in found.items() if key[1] == "input"}
    assert len(inputs) > 10 and "once" not in inputs.values(), inputs
    # What is chosen is in the event itself, and "always_last" would send the first event again.
    choices = [("fact-sheet", "select"), ("compare-grid", "select"), ("project-plot", "select"), ("project-plot", "click")]
    # And two clicks are two steps.
    turns = ["history-newer", "history-older", "history-previous", "history-next", "case-previous", "case-next"]
    steps = [(button, "click") for button in (*turns, "compare-previous", "compare-next", "undo", "redo", "reset")]
    assert {found[one] for one in (*choices, *steps)} == {("multiple", 1)}


def test_the_server_app_is_made_once_and_the_page_described_once(monkeypatch, tmp_path):
    made, create, described, describe = [], App.create_app, [], Blocks.get_config_file
    monkeypatch.setattr(App, "create_app", lambda *given, **told: made.append(given) or create(*given, **told))
    monkeypatch.setattr(Blocks, "get_config_file", lambda page: described.append(page) or describe(page))
    studio = Studio(Store(tmp_path / "studio.db"), None, "studio")
    try:
        page = build(studio)
        assert made == described == [], "each takes a tenth of a second of the studio's start"
        with described_once():
            page.launch(server_name="127.0.0.1", quiet=True, prevent_thread_lock=True, share=False)
        assert len(made) == len(described) == 1 and page.config["components"]
        assert page.config == page.get_config_file(), "what is served is what is there in the end"
        page.close(verbose=False)
    finally:
        studio.close()
