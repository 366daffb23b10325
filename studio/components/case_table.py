"""The case study on the page: what it is filtered by, a page of its rows, and the buttons that turn it."""

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from engine.facts import Fact
from engine.metrics import Instance
from studio.components import case_study
from studio.components.case_study import ALL, OUTCOMES, TYPES, Filter
from studio.components.markup import count
from studio.components.panel import panel

# Where there is no probe box that a clicked prompt could go to.
NOT_ASKED = "button.ask { pointer-events: none; }"
Updates = dict[Any, Any]
Cases = tuple[Sequence[Instance], Sequence[Fact]]


class CaseTable:
    """The components, made where the table shall stand; each elem_id is `prefix` and its own name.

    `show` goes into `outputs`. With `asks`, a click on a prompt is a `select` event of `rows`, its value the prompt.
    """

    def __init__(self, prefix: str, asks: bool) -> None:
        with gr.Row(elem_classes="toolbar filters"):
            self.kind = gr.Dropdown(list(TYPES), value=ALL, label="Type", min_width=120, elem_id=f"{prefix}type")
            self.outcome = gr.Dropdown(
                list(OUTCOMES), value=ALL, label="Result", min_width=120, elem_id=f"{prefix}outcome"
            )
            self.words = gr.Textbox(
                label="Search in these facts", placeholder="prompt, target, output or subject", max_lines=1, scale=3,
                elem_id=f"{prefix}words",
            )  # fmt: skip
        css = case_study.CSS if asks else case_study.CSS + NOT_ASKED
        self.rows = panel(elem_id=f"{prefix}study", css=css, js_on_load=case_study.ASK if asks else None)
        with gr.Row(elem_classes="toolbar below"):
            self.place = panel(elem_id=f"{prefix}place")
            self.previous = gr.Button("← Previous", size="sm", elem_id=f"{prefix}previous")
            self.next = gr.Button("Next →", size="sm", elem_id=f"{prefix}next")
        self._page = gr.State(1)

    @property
    def outputs(self) -> list[Any]:
        """Every component that `show` may change."""
        return [self.kind, self.outcome, self.words, *self._turning]

    @property
    def _turning(self) -> list[Any]:
        return [self.rows, self.place, self.previous, self.next, self._page]

    def show(self, instances: Sequence[Instance], facts: Sequence[Fact]) -> Updates:
        """All of them, from the first page on."""
        return {self.kind: ALL, self.outcome: ALL, self.words: ""} | self._page_of(instances, facts, Filter(), 1)

    def wire(self, source: gr.State, read: Callable[[Any], Cases | None]) -> None:
        """Let the filters and the buttons work on what `read` makes of the source's value; None: nothing is shown."""

        def turned(step: int | None):
            def turn(value: Any, kind: str, outcome: str, words: str, page: int) -> Updates:
                cases = read(value)
                number = 1 if step is None else page + step
                return self._page_of(*cases, Filter(kind, outcome, words), number) if cases else gr.skip()

            return turn

        chosen = [source, self.kind, self.outcome, self.words, self._page]
        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        # A Textbox's `input` is silent when text is pasted; its `change` is not.
        changes = [self.kind.input, self.outcome.input, self.words.change]
        gr.on(changes, turned(None), chosen, self._turning, trigger_mode="always_last", **quiet)
        each = {**quiet, "trigger_mode": "multiple", "concurrency_limit": 1}  # two quick clicks are two steps
        self.previous.click(turned(-1), chosen, self._turning, **each)
        self.next.click(turned(1), chosen, self._turning, **each)

    def _page_of(self, instances: Sequence[Instance], facts: Sequence[Fact], chosen: Filter, number: int) -> Updates:
        page = case_study.select(instances, facts, chosen, number)
        generated = sum(one.after.generated is not None for one in instances if one.kind == "edit")
        told = f" · generated texts for the first {count(generated, 'fact')}" if 0 < generated < len(facts) else ""
        return {
            self.rows: case_study.case_study_html(page, facts),
            self.place: f'<span class="quiet">{case_study.page_text(page)}{told}</span>',
            self.previous: gr.Button(interactive=page.number > 1),
            self.next: gr.Button(interactive=page.number < page.count),
            self._page: page.number,
        }
