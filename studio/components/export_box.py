"""What a person takes away from a finished edit: results, delta and the whole edited model, as files."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from engine.errors import EditingError
from studio.components.markup import note
from studio.components.panel import panel, said
from studio.components.progress_bar import CSS as BAR_CSS
from studio.components.progress_bar import watch
from studio.connection import StoreError
from studio.edit_job import FinishedEdit, show_current
from studio.exports import export_model, export_results
from studio.jobs import Job, JobError
from studio.studio import Studio

NOTHING = note("info", "There is no edit to export yet: apply one first.")
ELSEWHERE = "Another result is shown here by now. Under its own result it can be exported again and downloaded."
Updates = dict[Any, Any]


class ExportBox:
    """The components, made where they shall stand; what is exported is the edit whose result is shown."""

    def __init__(self, studio: Studio, session: gr.State) -> None:
        self.studio, self.session = studio, session
        with gr.Row(elem_classes="toolbar"):
            self.results = gr.Button("Results and weight shift", size="sm", elem_id="export-results")
            self.merged = gr.Button("Edited model (save_pretrained)", size="sm", elem_id="export-model")
            self.cancel = gr.Button("Cancel", size="sm", interactive=False, min_width=80, elem_id="export-cancel")
        self.bar = panel(elem_id="export-progress", css=BAR_CSS)
        self.told = panel(elem_id="export-told")
        self.files = gr.File(
            label="Ready to download", file_count="multiple", interactive=False, visible=False, elem_id="export-files",
            elem_classes="offered",
        )  # fmt: skip
        self._wire()

    @property
    def outputs(self) -> list[Any]:
        """Every component that `cleared` changes."""
        return [self.told, self.files]

    def cleared(self) -> Updates:
        """Nothing offered: the files were another edit's."""
        return {self.told: "", self.files: gr.File(None, visible=False)}

    def _wire(self) -> None:
        private = {"show_progress": "hidden", "api_visibility": "private"}
        outputs = [self.bar, self.told, self.files, self.results, self.merged, self.cancel]
        self.results.click(self._results, self.session, outputs, **private)
        self.merged.click(self._merged, self.session, outputs, concurrency_limit=None, **private)
        self.cancel.click(self._cancel, self.session, self.cancel, **private)

    def _results(self, session: str) -> Updates:
        try:
            edit = show_current(self.studio, self.studio.workspace(session))
            if edit is None:
                return {self.told: NOTHING}
            paths = export_results(self.studio.store, edit)
        except (EditingError, StoreError) as error:
            return {self.told: said("error", str(error))}
        title = "summary.json, facts.csv, and the weight shift as safetensors with its card."
        told = note("done", title, [f"They also lie in {paths[0].parent}"])
        return self._offered(session, edit, told, paths, f"results are in {paths[0].parent}")

    def _merged(self, session: str) -> Iterator[Updates]:
        model = self.studio.model
        try:
            edit = show_current(self.studio, self.studio.workspace(session))
        except (EditingError, StoreError) as error:
            yield {self.told: said("error", str(error))}
            return
        if edit is None or model is None:
            yield {self.told: NOTHING}
            return

        def work(job: Job) -> tuple[Path, Path]:
            return export_model(self.studio.store, edit, model, job.progress)

        try:
            job = self.studio.jobs.submit(
                f"Exporting run {edit.run_id}", work, model=model.sha256, workspace=self._jobs_of(session),
                runs=(edit.run_id,),
            )  # fmt: skip
        except JobError as error:
            yield {self.told: said("error", str(error))}
            return
        yield {self.told: "", **self._buttons(busy=True)}
        for shot, bar in watch(self.studio.jobs, job.id):
            # Said each time: the page may miss the first of several updates that come at once.
            yield {self.bar: bar, **self._buttons(busy=True), self.cancel: gr.Button(interactive=not shot.cancelling)}
        done = {self.bar: "", **self._buttons(busy=False)}
        if shot.state == "done":
            folder, archive = shot.result
            lines = [f"The folder is {folder}", f"Load it here as a model, or with: python app.py --model {folder}"]
            told = note("done", "The edited model, as a zip and as a folder.", lines)
            yield done | self._offered(session, edit, told, [archive], f"model is in {folder}")
        else:
            yield done | {self.told: said("error", shot.error) or note("info", "Cancelled: no file was written.")}

    def _offered(
        self, session: str, edit: FinishedEdit, told: str, paths: Sequence[Path], elsewhere: str
    ) -> Updates:
        """The files; where another result was put in the edit's place meanwhile, only a word on where they lie."""
        try:
            now = show_current(self.studio, self.studio.workspace(session))
        except (EditingError, StoreError):
            now = None
        if now is None or now.run_id != edit.run_id:
            return {self.told: note("info", f"Run {edit.run_id}’s {elsewhere}", [ELSEWHERE])}
        return {self.told: told, self.files: gr.File([str(path) for path in paths], visible=True)}

    def _buttons(self, busy: bool) -> Updates:
        buttons = {button: gr.Button(interactive=not busy) for button in (self.results, self.merged)}
        return buttons | {self.cancel: gr.Button(interactive=busy)}

    def _cancel(self, session: str) -> gr.Button:
        shot = self.studio.jobs.latest(self._jobs_of(session))
        if shot is not None and not shot.ended:
            self.studio.jobs.cancel(shot.id)
        return gr.Button(interactive=False)

    def _jobs_of(self, session: str) -> str:
        return f"{session} export"
