"""The sidebar: which weights answer now, which model is loaded and where it runs, and how to load another one."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.events import Dependency

from engine.errors import ModelError
from engine.model import EMBEDDED
from engine.placement import DTYPES
from studio.components.markup import note, text
from studio.components.panel import name_values, panel
from studio.components.progress_bar import CSS as BAR_CSS
from studio.components.progress_bar import watch
from studio.jobs import Snapshot
from studio.studio import Studio
from studio.workspace import Workspace

# The model is everybody's, so its loading belongs to the studio and not to one workspace.
LOADING = "model"
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
DEVICES = ("auto", "cpu", "cuda", "mps", "balanced")
CSS = """
.brand { display: flex; flex-direction: column; line-height: 1.35; }
.brand h1 { margin: 0; font-size: 18px; font-weight: 600; line-height: inherit; }
.brand span { color: var(--body-text-color-subdued); font-size: var(--text-xs); }
.weights { display: block; padding: 6px 10px; border-radius: var(--radius-md); font-weight: 600;
  border: 1px solid var(--border-color-primary); background: var(--background-fill-primary); overflow-wrap: anywhere; }
.weights.edited { border-color: var(--color-accent); background: var(--color-accent-soft); }
dl { grid-template-columns: max-content minmax(0, 1fr); gap: 2px 12px; font-size: var(--text-sm); }
p { font-size: var(--text-sm); }
"""
HELP = (
    "Your edits are yours alone: they belong to this browser, and the loaded weights stay the original ones. "
    "Each edit starts from the original weights and replaces the one before."
)
Updates = dict[Any, Any]


class Sidebar:
    """The components. `loaded` changes when another model is there, `returned` is clicked by the page when a person
    comes back to it: another page may have loaded a model or edited meanwhile. The tabs listen to both.
    """

    def __init__(self, studio: Studio, session: gr.State) -> None:
        self.studio, self.session = studio, session
        brand = '<div class="brand"><h1>AGRADE Studio</h1><span>edit facts in language models</span></div>'
        panel(brand, elem_id="brand", css=CSS)
        gr.Markdown("#### Weights in use", elem_classes="section")
        self.badge = panel(badge_html("original weights"), elem_id="badge", css=CSS)
        with gr.Row(elem_classes="toolbar"):
            self.undo = gr.Button("↶ Undo", size="sm", interactive=False, min_width=70, elem_id="undo")
            self.redo = gr.Button("↷ Redo", size="sm", interactive=False, min_width=70, elem_id="redo")
            self.reset = gr.Button("Original", size="sm", interactive=False, min_width=70, elem_id="reset")
        gr.Markdown("#### Model", elem_classes="section")
        self.model = panel(model_html(studio), elem_id="model", css=CSS)
        self.bar = panel(elem_id="model-progress", css=BAR_CSS)
        self.problem = panel(elem_id="model-problem")
        with gr.Accordion("Load another model", open=False, elem_id="model-choice"):
            self.name = gr.Textbox(
                EMBEDDED, label="Model", max_lines=1, info="embedded, a hub id, or a folder", elem_id="model-name"
            )
            with gr.Row():
                self.device = gr.Dropdown(
                    list(DEVICES), label="Device", value="auto", allow_custom_value=True, min_width=90,
                    elem_id="model-device",
                )  # fmt: skip
                self.dtype = gr.Dropdown(
                    ["auto", *DTYPES], label="Dtype", value="auto", min_width=90, elem_id="model-dtype"
                )
            self.pattern = gr.Textbox(
                label="Module pattern", max_lines=1, placeholder="model.layers.{}.mlp.down_proj",
                info="only for an unknown family: the matrix to edit, {} for the layer", elem_id="model-pattern",
            )  # fmt: skip
            with gr.Row(elem_classes="toolbar"):
                self.load = gr.Button("Load", variant="primary", size="sm", min_width=80, elem_id="model-load")
                self.cancel = gr.Button("Cancel", size="sm", min_width=80, interactive=False, elem_id="model-cancel")
        gr.Markdown(HELP, elem_classes="hint")
        self.loaded = gr.State("")
        self.stamp = gr.State()
        self.returned = gr.Button("Look again", visible="hidden", elem_id="returned")
        self._wire()

    @property
    def weights(self) -> list[Any]:
        """The components that `show_weights` changes."""
        return [self.badge, self.undo, self.redo, self.reset, self.stamp]

    def show_weights(self, workspace: Workspace) -> Updates:
        """The badge, and which way the history can go."""
        return {
            self.badge: badge_html(workspace.badge()),
            self.undo: gr.Button(interactive=workspace.can_undo),
            self.redo: gr.Button(interactive=workspace.can_redo),
            self.reset: gr.Button(interactive=workspace.can_undo),
            self.stamp: workspace.stamp(),
        }

    def back_to(self, tab: gr.Tab) -> Dependency:
        """The event of a person who comes back to the tab, or to the page; what is done then may stream.

        Of one event the page asks each listener only after the one before: a stream would hold up the other tabs'.
        """
        return gr.on([tab.select, self.returned.click], None, None, None, js="() => {}")

    def _wire(self) -> None:
        asked = [self.name, self.device, self.dtype, self.pattern]
        outputs = [self.model, self.bar, self.problem, self.load, self.cancel, self.loaded]
        streams = {"show_progress": "hidden", "concurrency_limit": None, "api_visibility": "private"}
        self.load.click(self._load, asked, outputs, **streams)
        gr.on(fn=self._open, outputs=outputs, **streams)
        self.returned.click(self._again, self.loaded, outputs, **streams)
        self.cancel.click(self._cancel, None, self.cancel, show_progress="hidden", api_visibility="private")

    def _load(self, name: str, device: str, dtype: str, pattern: str) -> Iterator[Updates]:
        try:
            wanted = named_model(name, self.studio.local)
        except ModelError as error:
            yield {self.problem: failure_html(str(error))}
            return
        shot = self.studio.jobs.latest(LOADING)
        if shot is None or shot.ended:
            start_loading(self.studio, wanted, device, dtype, pattern.strip() or None)
        yield from self._attach()

    def _open(self) -> Iterator[Updates]:
        """The model as a page finds it. What somebody's loading failed of is no news where there is a model."""
        last = self.studio.jobs.latest(LOADING)
        if self.studio.model is not None and last is not None and last.ended:
            yield self._ended(None)
        else:
            yield from self._attach()

    def _again(self, loaded: str) -> Iterator[Updates]:
        """The model, where it is not the one that the page shows; else the page stays, with what failed on it."""
        if loaded != self._loaded():
            yield from self._open()
        else:
            yield {self.loaded: loaded}

    def _attach(self) -> Iterator[Updates]:
        """Watch the model being loaded, also one that another page asked for, then show what is there."""
        last = self.studio.jobs.latest(LOADING)
        if last is None or last.ended:
            yield self._ended(last)
            return
        for shot, bar in watch(self.studio.jobs, last.id):
            if shot.ended:
                yield self._ended(shot)
                return
            busy = {self.load: gr.Button(interactive=False), self.cancel: gr.Button(interactive=True)}
            yield {self.model: model_html(self.studio), self.bar: bar, self.problem: "", **busy}

    def _ended(self, shot: Snapshot | None) -> Updates:
        failed = failure_html(shot.error) if shot and shot.error else ""
        return {
            self.model: model_html(self.studio),
            self.bar: "",
            self.problem: failed,
            self.load: gr.Button(interactive=True),
            self.cancel: gr.Button(interactive=False),
            self.loaded: self._loaded(),
        }

    def _loaded(self) -> str:
        model = self.studio.model
        return f"{model.sha256} {model.reason}" if model else ""

    def _cancel(self) -> gr.Button:
        shot = self.studio.jobs.latest(LOADING)
        if shot is not None and not shot.ended:
            self.studio.jobs.cancel(shot.id)
        return gr.Button(interactive=False)


def named_model(name: str, local: bool) -> str:
    """The model asked for; none is the embedded one. Raises ModelError for a folder when not `local`.

    Not `local`: whoever asks may sit elsewhere, and the folders of this computer are none of theirs.
    """
    wanted = name.strip() or EMBEDDED
    if not local and wanted != EMBEDDED and (not HUB_ID.fullmatch(wanted) or Path(wanted).exists()):
        raise ModelError(
            "This studio is open to other computers, so it loads the embedded model and models of the hub only: give "
            "a hub id such as owner/name, or start the studio with --model."
        )
    return wanted


def failure_html(error: str) -> str:
    """Why there is no other model now."""
    return note("error", "The model was not loaded.", error.splitlines())


def start_loading(
    studio: Studio, name: str, device: str = "auto", dtype: str = "auto", pattern: str | None = None
) -> str:
    """Load a model in a job of its own, behind the present model's work; the job's id."""

    def work(job) -> str:
        return studio.load_model(name, device, dtype, pattern, job.progress).sha256

    present = studio.model.sha256 if studio.model else ""
    return studio.jobs.submit(f"Loading {name}", work, model=present, workspace=LOADING).id


def badge_html(words: str) -> str:
    """Original weights, or which edit is on."""
    kind = "" if words == "original weights" else " edited"
    return f'<span class="weights{kind}" role="status">{text(words)}</span>'


def model_html(studio: Studio) -> str:
    """Name, where it runs and why, size, and the hash that checkpoints and deltas are bound to."""
    model = studio.model
    if model is None:
        return '<p class="quiet">No model is loaded yet.</p>'
    parameters = sum(parameter.numel() for parameter in model.lm.parameters())
    pairs = [
        ("Name", text(model.name)),
        ("Family", f"{text(model.family)}, {model.layer_count} layers, {parameters / 1e6:,.0f} M"),
        ("Runs on", text(model.reason)),
        *((("Edits", f"<code>{text(model.asked['module_pattern'])}</code>"),) if "module_pattern" in model.asked else ()),
        ("Weights", f'<code title="SHA-256 {model.sha256}">{model.sha256[:12]}</code>'),
    ]
    return name_values(pairs)
