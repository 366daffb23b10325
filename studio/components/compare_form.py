"""What a person says before a comparison: methods, ablations, sizes, settings; and what each method needs for it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from engine.comparison import ABLATIONS, Entry
from engine.editing import make_editor
from engine.editors import EDITORS
from engine.errors import EditingError
from engine.facts import FactBatch
from engine.forecast import forecast
from engine.work import Work
from studio.comparisons import CompareRequest, entries_of, read_sizes
from studio.components.changing_dropdown import ChangingDropdown
from studio.components.markup import count, seconds, text, tick
from studio.components.method_settings import Answers, MethodSettings
from studio.components.panel import panel
from studio.components.settings_form import whole
from studio.edit_job import refuse_server_files
from studio.estimate import Estimate
from studio.studio import Studio

FIRST = "agrade"
# The paper's two nearest rivals without a measured covariance, and the hardest fine-tuning to beat.
CHOSEN = (FIRST, "malmen", "ft-batched")
GENERATE = 64
FIRST_FACTS, GENERATED = "First facts only", "Facts to generate for"
NEEDS_CSS = """
td.needs { min-width: 118px; }
td.number { white-space: nowrap; }
td.now { overflow-wrap: anywhere; }
td.now .tick { margin-right: 6px; }
/* On a narrow page a method is a card, or what is said of it would stand in a column of single words. */
@container (max-width: 560px) {
  table, tbody { display: block; } thead { display: none; }
  tr { display: grid; grid-template-columns: 1fr auto; padding: 6px 0; border-top: 1px solid var(--border-color-primary); }
  tr:first-child { border-top: 0; }
  tr > td { border: 0; padding: 1px 10px; } td:first-child { font-weight: 600; }
  td.number::before { content: "edit, about "; } td.needs::before { content: "needs "; }
  td.number.unknown { visibility: hidden; }
  td.needs, td.now { grid-column: 1 / -1; order: 1; }
}
"""
WORDS = {
    "hypernetwork": "a hypernetwork",
    "covariance": "the keys’ covariance",
    "subject": "each fact’s subject",
}
Updates = dict[Any, Any]


class CompareForm:
    """The components. `inputs` go into an event, whose handler hands what arrives to `request` or `look`.

    `show` is for another model: the settings of the method `which`, into `method_settings.outputs`.
    """

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.names = sorted(EDITORS, key=lambda name: (name != FIRST, EDITORS[name].title))
        self.methods = gr.CheckboxGroup(
            [(EDITORS[name].title, name) for name in self.names], value=list(CHOSEN), label="Methods", show_label=False,
            elem_id="compare-choice",
        )  # fmt: skip
        self.ablations = gr.CheckboxGroup(
            [(part.title, name) for name, part in ABLATIONS.items()], value=[],
            label="AGRADE without one of its parts (the ablations of the paper’s Table 2)", elem_id="compare-ablations",
        )  # fmt: skip
        self.needs = panel(elem_id="compare-needs", css=NEEDS_CSS)
        with gr.Row():
            self.limit = gr.Number(
                0, label=FIRST_FACTS, info="0: all of the sheet", elem_id="compare-limit", min_width=160
            )
            self.sizes = gr.Textbox(
                label="Sizes of a sweep", placeholder="1, 8, 64", max_lines=1, elem_id="compare-sweep", min_width=200,
                info="each method also on so many first facts; empty: no sweep",
            )  # fmt: skip
            self.generate = gr.Number(
                GENERATE, label=GENERATED, elem_id="compare-generate", min_width=160,
                info="of the first ones the model’s own continuations are shown",
            )  # fmt: skip
        self.hypernets: dict[str, gr.Dropdown] = {}
        with gr.Accordion("Settings of the methods", open=False, elem_id="compare-settings"):
            self.which = gr.Dropdown(
                [(EDITORS[name].title, name) for name in self.names], value=FIRST, label="Settings of",
                elem_id="compare-which",
            )  # fmt: skip
            self.method_settings = MethodSettings(self.names, FIRST, "compare-", studio.local, self._choose_hypernet)
        last = {"trigger_mode": "always_last", "show_progress": "hidden", "api_visibility": "private"}
        self.which.input(self.show, self.which, self.method_settings.outputs, **last)

    def _choose_hypernet(self, name: str) -> None:
        if "hypernetwork" in EDITORS[name].needs:
            self.hypernets[name] = ChangingDropdown([], label="Hypernetwork", elem_id=f"compare-{name}-hypernet")

    @property
    def inputs(self) -> list[Any]:
        plan = [self.methods, self.ablations, self.limit, self.sizes, self.generate]
        return [*plan, self.method_settings.answers, *self.hypernets.values()]

    @property
    def outputs(self) -> list[Any]:
        """Every component that `look` may change."""
        return [self.needs, *self.hypernets.values()]

    @property
    def kept(self) -> list[Any]:
        """Every component that `again` may change."""
        return [*self.inputs, *self.method_settings.outputs]

    @property
    def changes(self) -> list[Any]:
        """The events after which something else would be needed."""
        return [
            *(one.change for one in (self.methods, self.ablations, self.method_settings.answers)),
            *(event for one in (self.limit, self.sizes, self.generate) for event in (one.blur, one.submit)),
            *(one.input for one in self.hypernets.values()),
        ]

    def request(
        self, batch: FactBatch, methods: Sequence[str], ablations: Sequence[str], limit: float | None,
        sizes: str | None, generate: float | None, answers: Answers, *hypernets: str | None,
    ) -> CompareRequest:  # fmt: skip
        """What the form says, as a request. Raises EditingError naming what cannot be read."""
        wanted = {*methods, *((FIRST,) if ablations else ())}
        settings = {name: self.method_settings.read(answers, name) for name in self.names if name in wanted}
        generated, first = whole(GENERATED, generate), whole(FIRST_FACTS, limit or 0)
        if first:
            batch = batch.only(batch.facts[:first])
        keys = [name for name in self.names if name in methods]
        keys += [f"{FIRST}:{name}" for name in ABLATIONS if name in ablations]
        chosen = {name: Path(folder) for name, folder in zip(self.hypernets, hypernets, strict=True) if folder}
        return CompareRequest(batch, entries_of(keys, settings, chosen), read_sizes(sizes or ""), generated)

    def show(self, method: str) -> Updates:
        """The settings of one method, with what the model's own values are of those left open."""
        return self.method_settings.show(method, self.studio.model)

    def again(
        self, methods: Sequence[str], ablations: Sequence[str], limit: float | None, sizes: str | None,
        generate: float | None, answers: Answers, *hypernets: str | None,
    ) -> Updates:  # fmt: skip
        """The form as it once was, but for hypernetworks that are no longer there."""
        said = {
            self.methods: methods, self.ablations: ablations, self.limit: limit, self.sizes: sizes,
            self.generate: generate,
        }  # fmt: skip
        offered = self._offered(dict(zip(self.hypernets, hypernets, strict=True)))
        return said | offered | self.method_settings.again(self.studio.model, answers)

    def _offered(self, chosen: dict[str, str | None]) -> Updates:
        """The hypernetworks that fit each method and the model; `chosen` has the one that stands there afterwards."""
        updates: Updates = {}
        for name, dropdown in self.hypernets.items():
            found = [(label, str(folder)) for label, folder in self.studio.hypernets(name)]
            fitting = [folder for _, folder in found]
            chosen[name] = chosen[name] if chosen[name] in fitting else next(iter(fitting), None)
            updates[dropdown] = gr.Dropdown(found, value=chosen[name])
        return updates

    def look(self, batch: FactBatch, *answers: Any, before: Sequence[Any] = ()) -> Updates:
        """What each chosen method needs, whether it is there, and about how long all of it will take.

        `before`: the answers of the comparison last begun, whose hypernetworks a page that was just opened shows.
        """
        learned = len(self.hypernets)
        plan, chosen = answers[:-learned], dict(zip(self.hypernets, answers[-learned:]))
        for name, folder in zip(self.hypernets, before[-learned:]):
            chosen[name] = chosen[name] or folder
        updates = self._offered(chosen)
        if self.studio.model is None:
            return updates | {self.needs: ""}
        try:
            request = self.request(batch, *plan, *chosen.values())
        except EditingError as error:
            return updates | {self.needs: f'<p class="quiet">{text(error)}</p>'}
        return updates | {self.needs: self._needs_html(request)}

    def _needs_html(self, request: CompareRequest) -> str:
        rows, known = [], []
        for entry in request.entries:
            cell, estimate = self._now(entry, request)
            known.append(estimate)
            took = seconds(max(0.1, estimate.edit_seconds)) if estimate else "–"
            needs = " and ".join(WORDS[need] for need in WORDS if need in EDITORS[entry.method].needs) or "nothing"
            rows.append(
                f'<tr><td>{text(entry.name)}</td><td class="needs">{needs}</td><td class="now">{cell}</td>'
                f'<td class="number{"" if estimate else " unknown"}">{took}</td></tr>'
            )
        return (
            '<div class="wide"><table><thead><tr><th>Method</th><th>Needs</th><th>Now</th>'
            f'<th class="number">Edit, about</th></tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
            f"{_total_html(request, known)}"
        )

    def _now(self, entry: Entry, request: CompareRequest) -> tuple[str, Estimate | None]:
        """Whether what the entry needs is there, as a cell, and how long it will take where that is known."""
        model, folders = self.studio.model, self.studio.hypernet_folders
        facts, estimate = request.facts.facts, None
        try:
            refuse_server_files(self.studio, entry)
            found, notes = entry.resolved(model, folders)
            if facts:
                ahead = forecast(model, facts, found.method, found.settings, found.hypernet, folders)
                estimate = self.studio.pace.estimate(model, ahead, facts, request.generate)
                first, notes = ahead.preparation, [*notes, *ahead.notes]
            else:
                editor, _ = make_editor(model, found.method, found.settings, found.hypernet, folders, weights=False)
                first = editor.preparation(model)
        except EditingError as error:
            return f"{tick(False)}{text(error)}", None
        told = "".join(f' <span class="quiet">{text(one)}</span>' for one in notes)
        return f"{_first_html(first, estimate) or tick(True) + 'ready'}{told}", estimate


def _first_html(first: Work, estimate: Estimate | None) -> str:
    """What will be made first, and for how long; "" when nothing is."""
    if not first.forward:
        return ""
    long = f", about {seconds(max(0.1, estimate.prepare_seconds))}" if estimate else ""
    return f"{tick(None)}the covariance is measured first and then kept{long}"


def _total_html(request: CompareRequest, known: Sequence[Estimate | None]) -> str:
    facts = len(request.facts.facts)
    if not facts or not any(known):
        return ""
    able = [one for one in known if one]
    again = 1 + sum(size / facts for size in set(request.sizes) if size < facts)
    total = sum(one.prepare_seconds + again * (one.edit_seconds + one.score_seconds) for one in able)
    methods = count(len(able), "method") if len(able) == len(known) else f"{len(able)} of {count(len(known), 'method')}"
    told = f"About {seconds(max(0.1, total))} for {methods} on {count(facts, 'fact')}, scoring included."
    return f'<p class="quiet">{" ".join(filter(None, (told, request.left_out)))}</p>'
