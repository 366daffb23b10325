"""The fact sheet: facts typed, pasted, uploaded or taken from a sample, with what is wrong shown by row."""

import tempfile
from pathlib import Path
from typing import Any

import gradio as gr

from engine.errors import FactError
from engine.fact_readers import read_facts, template_text
from engine.fact_records import TEMPLATE_COLUMNS
from engine.facts import FactBatch
from studio.components import sheet_rows
from studio.components.markup import count, note, text
from studio.components.panel import panel
from studio.components.sheet_rows import EDITABLE_ROWS, PREVIEW_ROWS, Rows
from studio.studio import Studio

SAMPLES = Path(__file__).resolve().parents[2] / "assets" / "samples"
HELP = (
    "New here? Press one of the three samples, then *Apply* below.\n\n"
    "One fact a row: the **prompt** shall be answered by the **target**. *Equivalent* prompts shall get the same "
    "answer, *unrelated* prompts shall keep theirs (*unrelated_answer*, where you know it). "
    "Several in one cell are separated by ` || `. Only prompt and target are needed. Rows copied from a spreadsheet "
    "can be pasted into a cell. Ctrl+Enter applies.\n\n"
    "An edit is not shown the equivalent prompts, so that GS, generality, says how far it carries; *Teach equivalent* in "
    "the settings of AGRADE, MALMEN and MEND has them learned as well."
)
COLUMNS = f"The sheet has {len(TEMPLATE_COLUMNS)} columns; those that do not fit are seen by scrolling it sideways."
WIDTHS = ["21%", "10%", "20%", "17%", "11%", "8%", "8%"]
FORMS = {"counterfact": "CounterFact", "zsre": "zsRE", "selfcheckgpt": "SelfCheckGPT"}
LONGEST_SHOWN = 240
# A list in a list: Gradio takes an array that a script returns for the list of its outputs.
ROWS = "(sheet) => [JSON.parse(JSON.stringify(sheet?.data ?? []))]"
# What the page's script has kept of pastes (KEYS of the layout), each once.
PASTED = "(pasted, sheet) => [window.pasted.splice(0), sheet]"
Updates = dict[Any, Any]


class FactSheet:
    """The components, made where the sheet shall stand. `rows` changes when what the sheet says has changed."""

    def __init__(self, studio: Studio, session: gr.State) -> None:
        self.studio, self.session = studio, session
        gr.Markdown(HELP, elem_classes="hint")
        with gr.Row(elem_classes="toolbar"):
            self.samples = [
                (path, gr.Button(sample_title(path), size="sm", elem_id=f"sample-{path.stem}")) for path in samples()
            ]
            self.upload = gr.UploadButton("Upload CSV, JSON or JSONL", size="sm", elem_id="facts-upload")
            gr.DownloadButton("Template", template_file(), size="sm", elem_id="facts-template")
        gr.Markdown(COLUMNS, elem_classes="hint narrow-only")
        self.sheet = gr.Dataframe(
            sheet_rows.blank_rows(),
            headers=list(TEMPLATE_COLUMNS),
            column_count=(len(TEMPLATE_COLUMNS), "fixed"),  # cells are read by their place
            datatype="str",
            type="array",
            interactive=True,
            wrap=True,
            show_row_numbers=True,
            show_label=False,
            label="Facts",
            column_widths=WIDTHS,
            max_height=340,
            buttons=[],
            max_chars=LONGEST_SHOWN,
            elem_id="fact-sheet",
        )
        # The sheet's own change comes several times for one change, and for none when it is left.
        self.rows = gr.JSON(sheet_rows.blank_rows(), visible=False)
        with gr.Row(elem_classes="toolbar below"):
            self.status = panel(status_html(sheet_rows.read_rows([])), elem_id="facts-status")
            self.add = gr.Button("Add a row", size="sm", elem_id="facts-add")
            self.remove = gr.Button("Remove row", size="sm", interactive=False, elem_id="facts-remove")
            self.clear = gr.Button("Clear", size="sm", elem_id="facts-clear")
            self.back = gr.Button("Put back", size="sm", visible=False, elem_id="facts-back")
        self.problems = panel(elem_id="facts-problems")
        self.opened = gr.State(False)  # whether the page has what its workspace holds; until then its sheet is blank
        self._row = gr.State(-1)
        self._clipboard = gr.JSON(visible=False)
        self._paste = gr.Button("Paste", visible="hidden", elem_id="facts-paste")
        self._wire()

    @property
    def outputs(self) -> list[Any]:
        """Every component that `shown` may change."""
        return [self.sheet, self.add, self.remove, self.back, self.status, self.problems]

    def shown(self, batch: FactBatch | None, rows: Rows | None = None, back: bool = False) -> Updates:
        """The sheet filled with a batch, or emptied. `back`: what stood there before can be put back."""
        rows = rows if rows is not None else sheet_rows.rows_of(batch) if batch else []
        editable = batch is None or len(batch) <= EDITABLE_ROWS
        return {
            self.sheet: gr.Dataframe(rows or sheet_rows.blank_rows(), interactive=editable),
            self.add: gr.Button(interactive=editable),
            self.remove: gr.Button("Remove row", interactive=False),
            self.back: gr.Button(visible=back),
            self.status: status_html(batch or sheet_rows.read_rows([])),
            self.problems: problems_html(batch) if batch else "",
        }

    def read(self, session: str, value: Any) -> FactBatch:
        """What is in the sheet now, or the upload it shows. Raises FactError when that is unclear."""
        # While the page is being opened it has no workspace yet.
        workspace = self.studio.workspace(session) if session else None
        rows = sheet_rows.clean_rows(value)
        if workspace is None:
            return sheet_rows.read_rows(rows)
        return sheet_rows.chosen_batch(rows, workspace.batch, workspace.previews)

    def _wire(self) -> None:
        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        filled = self.outputs
        self.upload.upload(
            self._uploaded, [self.session, self.upload], filled, show_progress_on=self.sheet, api_visibility="private"
        )
        for path, button in self.samples:
            button.click(self._sampled(path), [self.session], filled, **quiet)
        self.sheet.change(None, self.sheet, self.rows, js=ROWS)
        held = [self.session, self.rows, self.opened]
        self.rows.change(self._described, held, [self.status, self.problems], **quiet)
        # Each, one at a time: "once" would drop the last of two cells, "always_last" ask for the first again.
        each = {**quiet, "trigger_mode": "multiple", "concurrency_limit": 1}
        self.sheet.select(self._selected, None, [self._row, self.remove], **each)
        clipboard, pasted = [self._clipboard, self.sheet], [self.sheet, self.problems]
        self._paste.click(self._pasted, clipboard, pasted, js=PASTED, trigger_mode="always_last", **quiet)
        self.add.click(self._added, self.sheet, self.sheet, **quiet)
        now = [self.session, self.sheet]
        removed = [self.sheet, self._row, self.remove, self.back]
        self.remove.click(self._removed, [*now, self._row], removed, **quiet)
        self.clear.click(self._cleared, now, filled, **quiet)
        self.back.click(self._put_back, now, filled, **quiet)

    def _uploaded(self, session: str, path: str) -> Updates:
        return self.load(session, Path(path))

    def _sampled(self, path: Path):
        return lambda session: self.load(session, path)

    def load(self, session: str, path: Path) -> Updates:
        """The sheet filled from a file, whose facts are then the workspace's; or why the file was not taken."""
        try:
            batch, rows = sheet_rows.upload(path)
        except FactError as error:
            return {self.problems: note("error", "The file was not taken; the sheet is as it was.", [str(error)])}
        workspace = self.studio.workspace(session)
        workspace.hold(batch, rows)
        if len(batch) > EDITABLE_ROWS:
            workspace.previews[sheet_rows.preview_key(rows)] = batch.source
        return self.shown(batch, rows)

    def kept(self, session: str) -> Updates:
        """The sheet as the workspace holds it, for a page that is opened."""
        workspace = self.studio.workspace(session)
        if workspace.batch is None and workspace.rows is None:
            return {self.opened: True}
        shown = self.shown(workspace.batch, workspace.rows, back=workspace.removed is not None)
        return shown | {self.opened: True}

    def come_back(self, session: str, value: Any, opened: bool) -> Updates:
        """What another page of this browser put into the sheet meanwhile; it stays as it is when that is nothing."""
        if not opened:
            return gr.skip()
        workspace = self.studio.workspace(session)
        kept = workspace.rows or (sheet_rows.rows_of(workspace.batch) if workspace.batch and workspace.rows is None else [])
        if sheet_rows.same(kept, value):
            return gr.skip()
        return self.shown(workspace.batch, workspace.rows, back=workspace.removed is not None)

    def _described(self, session: str, value: Any, opened: bool) -> Updates:
        """What the sheet says, which the workspace keeps for a page that is opened again."""
        try:
            batch = self.read(session, value)
        except FactError as error:
            return {self.status: "", self.problems: note("warning", "Which facts are meant?", [str(error)])}
        rows = sheet_rows.clean_rows(value)
        if session and (opened or sheet_rows.filled(rows)):
            workspace = self.studio.workspace(session)
            workspace.rows = None if batch is workspace.batch else rows
        return {self.status: status_html(batch), self.problems: problems_html(batch)}

    def _selected(self, event: gr.SelectData) -> tuple[int, gr.Button]:
        row = event.index[0]
        return row, gr.Button(f"Remove row {row + 1}", interactive=True)

    def _pasted(self, pasted: Any, value: Any) -> Updates:
        rows = sheet_rows.clean_rows(value)
        try:
            for one in pasted:
                rows = sheet_rows.pasted(rows, one["text"], one["row"], one["column"])
        except FactError as error:
            return {self.problems: note("error", "Nothing was pasted; the sheet is as it was.", [str(error)])}
        return {self.sheet: rows}

    def _added(self, value: Any) -> Rows:
        return [*sheet_rows.clean_rows(value), *sheet_rows.blank_rows(1)]

    def _removed(self, session: str, value: Any, row: int) -> tuple[Rows, int, gr.Button, gr.Button]:
        rows = sheet_rows.clean_rows(value)
        back = self._remember(session, value) if 0 <= row < len(rows) and any(rows[row]) else gr.skip()
        del rows[row : row + 1]
        return rows or sheet_rows.blank_rows(1), -1, gr.Button("Remove row", interactive=False), back

    def _cleared(self, session: str, value: Any) -> Updates:
        back = gr.skip() if sheet_rows.same([], value) else self._remember(session, value)
        self.studio.workspace(session).hold(None)
        return self.shown(None) | {self.back: back}

    def _put_back(self, session: str, value: Any) -> Updates:
        """The sheet before Clear or Remove; what stands in it now can be put back likewise."""
        workspace = self.studio.workspace(session)
        if workspace.removed is None:  # another page did
            return {self.back: gr.Button(visible=False)}
        (batch, rows), workspace.removed = workspace.removed, None
        if not sheet_rows.same([], value):
            self._remember(session, value)
        workspace.hold(batch, rows)
        return self.shown(batch, rows, back=workspace.removed is not None)

    def _remember(self, session: str, value: Any) -> gr.Button:
        """Keep what the sheet says; the button that puts it back."""
        workspace = self.studio.workspace(session)
        batch = workspace.batch
        untouched = batch is not None and sheet_rows.same(sheet_rows.rows_of(batch), value)
        workspace.removed = batch, None if untouched else sheet_rows.clean_rows(value)
        return gr.Button(visible=True)


def samples() -> list[Path]:
    """The sample batches that come with the studio."""
    return sorted(SAMPLES.glob("*.json"))


def sample_title(path: Path) -> str:
    """“changed-facts.json” with 71 facts is “Changed facts (71)”."""
    return f"{path.stem.replace('-', ' ').capitalize()} ({len(read_facts(path))})"


def template_file() -> str:
    """The template as a file that can be downloaded."""
    path = Path(tempfile.mkdtemp(prefix="agrade-studio-")) / "facts-template.csv"
    path.write_bytes(template_text().encode("utf-8-sig"))
    return str(path)


def status_html(batch: FactBatch) -> str:
    """How many facts and prompts there are, and where they come from."""
    origin = "" if batch.source == sheet_rows.SHEET else f" · {text(batch.source)}"
    if batch.errors and not batch.facts:
        return f'<span class="quiet">No fact that can be edited yet{origin}</span>'
    if not batch.facts:
        return '<span class="quiet">No facts yet: type one, load a sample or upload a file.</span>'
    equivalent = sum(len(fact.equivalent) for fact in batch)
    unrelated = sum(len(fact.unrelated) for fact in batch)
    form = "" if batch.form == "studio" else f" ({text(FORMS.get(batch.form, batch.form))} form)"
    preview = f" · the first {PREVIEW_ROWS} are shown" if len(batch) > EDITABLE_ROWS else ""
    return (
        f"<strong>{count(len(batch), 'fact')}</strong> · {equivalent:,} equivalent and "
        f"{count(unrelated, 'unrelated prompt')}{origin}{form}{preview}"
    )



def problems_html(batch: FactBatch, refused: bool = False) -> str:
    """Errors, then warnings, row by row; `refused`: Apply was pressed, so that the errors are what stopped it."""
    errors, warnings = batch.errors, batch.warnings
    parts = []
    if errors:
        title = f"{count(len(errors), 'problem')} to mend first"
        title = f"Nothing was edited: {title}." if refused else f"{title}, before these facts can be edited."
        parts.append(note("error" if refused else "warning", title, map(str, errors)))
    if warnings:
        title = f"{count(len(warnings), 'remark')}. The facts can be edited as they are."
        parts.append(note("info", title, map(str, warnings), 10))
    return "".join(parts)
