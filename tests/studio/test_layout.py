"""The page as it is made: without what is slow and not needed yet, once, and its events as quick as a person."""

import subprocess
import sys

import pytest
from gradio import Blocks
from gradio.routes import App

from studio.components.training_plot import INK
from studio.layout import STYLE, build, launch_arguments
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
    turns = ["history-newer", "history-older", "history-case-previous", "history-case-next", "case-previous", "case-next"]
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


def contrast(one: str, other: str) -> float:
    """Of two colours, #rrggbb: WCAG's, 1 to 21."""

    def light(colour: str) -> float:
        shares = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    darker, lighter = sorted(map(light, (one, other)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("scheme", ["", "_dark"])
def test_a_chosen_tab_and_the_words_of_plots_can_be_read_light_and_dark(scheme):
    theme = launch_arguments()["theme"]
    page, block, ink, chosen = (
        theme._get_computed_value(name + scheme).replace("white", "#ffffff")
        for name in ("body_background_fill", "block_background_fill", "body_text_color", "color_accent")
    )
    assert contrast(chosen, page) >= 4.5 and contrast(ink, block) >= 4.5
    rule = '[data-testid="plotly"] .main-svg > :not(.hoverlayer) text { fill: var(--body-text-color) !important; }'
    assert rule in STYLE.read_text(encoding="utf-8")
    assert contrast(INK, block) >= (3.0 if scheme else 4.5), "of lines; in a file, which is white, of words"
