"""The History tab: every run of the database, newest first, also those that failed; searched, opened, repeated, deleted."""

from typing import Any

import gradio as gr

from engine.errors import EditingError
from studio.api import check_kinds, told
from studio.components.fact_sheet import FactSheet
from studio.components.markup import note, span
from studio.components.panel import panel, said, shown
from studio.components.run_table import KINDS, headline, run_table, runs_html
from studio.components.run_view import RunView, facts_file
from studio.connection import StoreError
from studio.deletion import delete_run
from studio.exports import folder_of
from studio.studio import Studio

PAGE_RUNS = 25
STATES = ("running", "done", "failed", "cancelled")

FOR_GOOD = (
    "Its facts, outputs, scores and pictures, and what was exported here, cannot be brought back. An edit of it that is "
    "on is taken off."
)
# The weights in use and the Edit tab's result are another's to show: as when a person comes back to the page.
LOOK_AGAIN = "() => document.getElementById('returned').click()"
TO_EDIT = "(told) => { if (!told) document.getElementById('tab-edit-button').click(); }"

Updates = dict[Any, Any]


def summary(row: dict[str, Any]) -> dict[str, Any]:
    """A run of the list for programs: what the table shows, unrounded."""
    names = ("id", "kind", "title", "method", "model", "status", "error", "started", "duration")
    scores = dict(zip(("ES", "GS", "LS", "Score"), headline(row), strict=True))
    return {name: row[name] for name in names} | scores


def filters(search: str, kind: str, status: str) -> dict[str, Any]:
    """The form's answers as arguments of `Store.runs`."""
    return {"search": search, "kind": kind, "status": status or None}


def build(studio: Studio, session: gr.State, sheet: FactSheet) -> None:
    """Build the tab inside the open layout. It lists the runs of all sessions; a run's facts can be put into `sheet`."""
    store = studio.store

    with gr.Column(elem_id="history-list") as listing:
        deleted = panel(elem_id="history-deleted", visible=False)
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
        with gr.Row(elem_classes="toolbar ends"):
            back = gr.Button("← All runs", size="sm", elem_id="history-back")
            delete = gr.Button("Delete this run", size="sm", elem_id="history-delete")
        problem = panel(elem_id="history-problem", visible=False)
        with gr.Column(visible=False) as asking:
            question = panel(elem_id="history-question")
            with gr.Row(elem_classes="toolbar"):
                sure = gr.Button("Delete for good", variant="stop", size="sm", elem_id="history-sure")
                keep = gr.Button("Keep it", size="sm", elem_id="history-keep")
        with gr.Column() as body:
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
            place: f'<span class="quiet">{span(first, first + len(rows) - 1, total, "run")}</span>' if rows else "",
            newer: gr.Button(interactive=number > 1, visible=pages > 1),
            older: gr.Button(interactive=number < pages, visible=pages > 1),
            page: number,
        }

    def open_run(event: gr.SelectData) -> Updates:
        try:
            updates = view.show(int(event.value)) | {problem: shown("")}
            updates |= {body: gr.Column(visible=True), delete: gr.Button(visible=True)}
        except StoreError as error:
            updates = missing(error)
        return updates | {
            listing: gr.Column(visible=False), opened: gr.Column(visible=True), asking: gr.Column(visible=False)
        }  # fmt: skip

    def look_again(number: int | None, state: str) -> Updates:
        """The opened run, where it went on, wrote files or was deleted out of this tab's sight."""
        if number is None:
            return gr.skip()
        try:
            return view.again(number, state)
        except StoreError as error:
            return missing(error)

    def missing(error: StoreError) -> Updates:
        hidden = {part: gr.Column(visible=False) for part in (body, asking)}
        return {problem: shown(said("error", str(error))), delete: gr.Button(visible=False), view.run: None, **hidden}

    def ask(number: int) -> Updates:
        return {question: note("warning", f"Delete run {number} for good?", [FOR_GOOD]), asking: gr.Column(visible=True)}

    def delete_shown(number: int, *answers: Any) -> Updates:
        try:
            left = delete_run(studio, number)
        except (EditingError, StoreError) as error:
            return {problem: shown(said("error", str(error))), asking: gr.Column(visible=False)}
        stays = ["What it wrote elsewhere stays:", *map(str, left)] if left else []
        return {deleted: shown(note("done", f"Run {number} is deleted.", stays)), **back_to_list(*answers)}

    def take(number: int, session: str) -> Updates:
        """The opened run's facts in the Edit tab's sheet, as if their file had been uploaded."""
        try:
            file = facts_file(store.run(number), folder_of(store, number))
        except (EditingError, StoreError) as error:
            return {problem: shown(said("error", str(error)))}
        return {problem: shown(""), **sheet.load(session, file)}

    def back_to_list(*answers: Any) -> Updates:
        closed = {listing: gr.Column(visible=True), opened: gr.Column(visible=False), view.run: None}
        return show_list(*answers) | closed

    def list_runs(search: str = "", kind: str = "", status: str = "", page: int = 1) -> list[dict[str, Any]]:
        """Runs, newest first, 25 a page. search: words of a prompt, target, output, title or error.

        kind: edit, compare, train or tune; status: running, done, failed or cancelled; "" for all.
        """
        told(check_kinds, list_runs, search=search, kind=kind, status=status, page=page)
        for name, given, known in (("kind", kind, list(KINDS)), ("status", status, list(STATES))):
            if given and given not in known:
                raise gr.Error(f"{name} is {given!r}: give one of {', '.join(known)}.", print_exception=False)
        rows = store.runs(**filters(search, kind, status), limit=PAGE_RUNS, offset=(max(1, page) - 1) * PAGE_RUNS)
        return [summary(row) for row in rows]

    hidden = {"api_visibility": "private", "show_progress": "hidden"}
    asked, listed = [search, kind, status], [table, place, newer, older, page]
    # A Textbox's `input` is silent when text is pasted; its `change` is not.
    gr.on([search.change, kind.input, status.input], show_list, asked, listed, trigger_mode="always_last", **hidden)
    for button, step in ((newer, -1), (older, 1)):
        button.click(
            lambda *answers, step=step: show_list(*answers[:3], answers[3] + step), [*asked, page], listed,
            trigger_mode="multiple", concurrency_limit=1, **hidden,
        )  # fmt: skip
    # The layout opens a gr.Tab around this; its list is made anew whenever it comes into sight.
    gr.on([listing.parent.select], show_list, [*asked, page], listed, **hidden)
    # One after the other: a run that is opened while another one is looked at again shall stay.
    shows = {"concurrency_id": "opened run", "concurrency_limit": 1, **hidden}
    seen = [problem, body, delete, asking, *view.outputs]
    table.select(open_run, None, [listing, opened, *seen], **shows)
    listing.parent.select(look_again, [view.run, view.status], seen, **shows)
    both = [listing, opened, *listed, deleted, view.run]
    back.click(lambda *answers: {deleted: shown(""), **back_to_list(*answers)}, [*asked, page], both, **hidden)
    delete.click(ask, view.run, [question, asking], **hidden)
    keep.click(lambda: gr.Column(visible=False), None, asking, **hidden)
    gone = sure.click(delete_shown, [view.run, *asked, page], [*both, problem, asking], **hidden)
    gone.then(None, None, None, js=LOOK_AGAIN)
    taken = view.take.click(take, [view.run, session], [problem, *sheet.outputs], **hidden)
    taken.then(None, problem, None, js=TO_EDIT)
    gr.api(list_runs, api_name="history")
