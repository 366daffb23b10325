"""The History tab: every run of the database, newest first, also those that failed; searched, opened, repeated."""

from typing import Any

import gradio as gr

from studio.components.panel import panel, said, shown
from studio.components.run_table import KINDS, headline, run_table, runs_html
from studio.components.run_view import RunView
from studio.connection import StoreError
from studio.studio import Studio

PAGE_RUNS = 25
STATES = ("running", "done", "failed", "cancelled")

Updates = dict[Any, Any]


def summary(row: dict[str, Any]) -> dict[str, Any]:
    """A run of the list for programs: what the table shows, unrounded."""
    names = ("id", "kind", "title", "method", "model", "status", "error", "started", "duration")
    scores = dict(zip(("ES", "GS", "LS", "Score"), headline(row), strict=True))
    return {name: row[name] for name in names} | scores


def filters(search: str, kind: str, status: str) -> dict[str, Any]:
    """The form's answers as arguments of `Store.runs`."""
    return {"search": search, "kind": kind, "status": status or None}


def build(studio: Studio, session: gr.State) -> None:
    """Build the tab inside the open layout. It lists the runs of all sessions, so it does not ask for `session`."""
    store = studio.store

    with gr.Column(elem_id="history-list") as listing:
        with gr.Row(elem_classes="toolbar filters"):
            search = gr.Textbox(
                label="Search", scale=3, max_lines=1, min_width=320, elem_id="history-search",
                placeholder="words of a prompt, target, output, title or error",
            )  # fmt: skip
            kinds = [("all", ""), *((title, name) for name, title in KINDS.items())]
            kind = gr.Dropdown(kinds, value="", label="Kind", min_width=120, elem_id="history-kind")
            states = [("all", ""), *((name, name) for name in STATES)]
            status = gr.Dropdown(states, value="", label="State", min_width=120, elem_id="history-status")
        table = run_table(elem_id="history-table")
        with gr.Row(elem_classes="toolbar below"):
            place = panel(elem_id="history-place")
            newer = gr.Button("← Newer", size="sm", elem_id="history-newer")
            older = gr.Button("Older →", size="sm", elem_id="history-older")
    with gr.Column(visible=False, elem_id="history-run") as opened:
        with gr.Row():
            back = gr.Button("← All runs", size="sm", scale=0, min_width=150, elem_id="history-back")
        problem = panel(elem_id="history-problem", visible=False)
        view = RunView(store)
    page = gr.State(1)

    def show_list(search: str, kind: str, status: str, number: int = 1) -> Updates:
        chosen = filters(search, kind, status)
        total = store.count_runs(**chosen)
        pages = max(1, -(-total // PAGE_RUNS))
        number = min(max(1, number), pages)
        rows = store.runs(**chosen, limit=PAGE_RUNS, offset=(number - 1) * PAGE_RUNS)
        first = (number - 1) * PAGE_RUNS + 1
        return {
            table: runs_html(rows, filtered=bool(search.strip() or kind or status)),
            place: f'<span class="quiet">{first:,}–{first + len(rows) - 1:,} of {total:,} runs</span>' if rows else "",
            newer: gr.Button(interactive=number > 1, visible=pages > 1),
            older: gr.Button(interactive=number < pages, visible=pages > 1),
            page: number,
        }

    def open_run(event: gr.SelectData) -> Updates:
        try:
            updates = view.show(int(event.value)) | {problem: shown("")}
        except StoreError as error:
            updates = {problem: shown(said("error", str(error)))}
        return updates | {listing: gr.Column(visible=False), opened: gr.Column(visible=True)}

    def list_runs(search: str = "", kind: str = "", status: str = "", page: int = 1) -> list[dict[str, Any]]:
        """Runs, newest first, 25 a page. search: words of a prompt, target, output, title or error."""
        rows = store.runs(**filters(search, kind, status), limit=PAGE_RUNS, offset=(max(1, page) - 1) * PAGE_RUNS)
        return [summary(row) for row in rows]

    hidden = {"api_visibility": "private", "show_progress": "hidden"}
    asked, listed = [search, kind, status], [table, place, newer, older, page]
    # A Textbox's `input` is silent when text is pasted; its `change` is not.
    gr.on([search.change, kind.input, status.input], show_list, asked, listed, trigger_mode="always_last", **hidden)
    newer.click(lambda *answers: show_list(*answers[:3], answers[3] - 1), [*asked, page], listed, **hidden)
    older.click(lambda *answers: show_list(*answers[:3], answers[3] + 1), [*asked, page], listed, **hidden)
    # The layout opens a gr.Tab around this; its list is made anew whenever it comes into sight.
    gr.on([listing.parent.select], show_list, [*asked, page], listed, **hidden)
    table.select(open_run, None, [listing, opened, problem, *view.outputs], **hidden)
    back.click(
        lambda *answers: show_list(*answers) | {listing: gr.Column(visible=True), opened: gr.Column(visible=False)},
        [*asked, page], [listing, opened, *listed], **hidden,
    )  # fmt: skip
    gr.api(list_runs, api_name="history")
