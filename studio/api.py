"""The Edit and Compare tabs' work for programs: named endpoints for gradio_client, which need no component.

Each client has a workspace of its own, so that what it applies, undoes and probes is its own edit.
"""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_type_hints

import gradio as gr
from gradio.utils import get_upload_folder
from pydantic import TypeAdapter, ValidationError

from engine.editors import EDITORS
from engine.errors import CheckpointError, EditingError, FactError
from engine.fact_readers import read_facts
from engine.fact_records import parse_records
from engine.facts import FactBatch
from engine.recorder import ROWS
from studio.arguments import refuse_unused
from studio.compare_job import run_of, start_comparison
from studio.comparison_files import summary_list
from studio.comparison_record import read_comparison
from studio.comparisons import CompareRequest, entries_of
from studio.components.sidebar import LOADING
from studio.connection import StoreError
from studio.edit_job import start_edit
from studio.jobs import JobError
from studio.probing import ask
from studio.runs import EditRequest, own_defaults, summary
from studio.studio import Studio
from studio.workspace import Workspace

SOURCE = "Facts of a program"
LOADING_SECONDS = 600.0  # a large model from a slow disk


def add_endpoints(studio: Studio) -> None:
    """Add upload, apply, probe, undo, redo, reset and compare to the open Blocks.

    Refusals arrive as errors with a sentence.
    """

    def own(request: gr.Request) -> Workspace:
        return studio.caller(request.session_hash)

    def upload(request: gr.Request, file: dict[str, Any]) -> dict[str, Any]:
        """Read a CSV, JSON or JSONL file of facts for the next apply. Returns how many, and every problem by row."""
        if not isinstance(file, dict):
            raise gr.Error(f"file is {file!r}: send it with gradio_client's handle_file.", print_exception=False)
        workspace = own(request)
        workspace.hold(told(read_facts, told(uploaded_path, file)))
        return _batch(workspace.batch)

    def apply(
        request: gr.Request,
        facts: list[dict[str, Any]] = [],  # noqa: B006: Gradio shows the default to clients, nobody changes it
        method: str = "agrade",
        settings: dict[str, Any] = {},  # noqa: B006
        hypernet: str = "",
        generate: int = 64,
        keep: int = ROWS,
    ) -> dict[str, Any]:
        """Edit these facts (records with prompt, target, …; none: those uploaded) and wait for the scores.

        hypernet: a checkpoint by its name; "" is the one that the page offers first. keep: rows of each matrix kept
        for the Projections tab, 0 for none. The unrelated prompts are kept (keep_unrelated) unless `settings` say not to.
        """
        told(check_kinds, apply, facts=facts, method=method, settings=settings, hypernet=hypernet)
        told(check_counts, generate=generate, keep=keep)
        workspace = own(request)
        batch = told(parse_records, facts, SOURCE) if facts else workspace.batch
        if batch is None:
            raise gr.Error("There is no fact to edit: give records, or upload a file first.", print_exception=False)
        await_model(studio)
        chosen = told(known_hypernet, studio, method, hypernet)
        settings = own_defaults(method) | settings
        job = told(start_edit, studio, workspace, EditRequest(batch, method, settings, chosen, generate, keep=keep))
        job.ended.wait()
        shot = job.snapshot()
        if shot.state != "done":
            raise gr.Error(shot.error or "The edit was cancelled; nothing was edited.", print_exception=False)
        edit = workspace.shown
        instances = [asdict(one) for one in edit.run.outcome.instances]
        return {"run": edit.run_id, "badge": workspace.badge(), **summary(edit.run), "instances": instances}

    def compare(
        request: gr.Request,
        methods: list[str],
        facts: list[dict[str, Any]] = [],  # noqa: B006
        settings: dict[str, dict[str, Any]] = {},  # noqa: B006
        hypernets: dict[str, str] = {},  # noqa: B006
        sizes: list[int] = [],  # noqa: B006
        generate: int = 64,
    ) -> dict[str, Any]:
        """Put these facts (none: those uploaded) through methods such as agrade, agrade:no-c and memit; wait for all.

        settings, hypernets: by method, the latter by the checkpoint's name. Returns the run, for each method what
        `apply` returns of its edit, or its error, and notes on what was left out.
        """
        told(check_kinds, compare, methods=methods, facts=facts, settings=settings, hypernets=hypernets, sizes=sizes)
        told(check_counts, generate=generate)
        workspace = own(request)
        batch = told(parse_records, facts, SOURCE) if facts else workspace.batch
        if batch is None:
            raise gr.Error("There is no fact to edit: give records, or upload a file first.", print_exception=False)
        await_model(studio)
        learned = {name for name, editor in EDITORS.items() if "hypernetwork" in editor.needs}
        folders = {name: told(known_hypernet, studio, name, hypernets.get(name, "")) for name in learned}
        entries = told(entries_of, methods, settings, folders)
        for name, given, known in (("settings", settings, set(EDITORS)), ("hypernets", hypernets, learned)):
            if odd := ", ".join(sorted(set(given) - known)):
                told_so = f"{name} is given for {odd}: give it for {', '.join(sorted(known))}; an ablation has its method's."
                raise gr.Error(told_so, print_exception=False)
        told(refuse_unused, entries, {"settings": settings, "hypernets": hypernets}, "methods")
        asked = CompareRequest(batch, entries, tuple(sizes), generate)
        job = told(start_comparison, studio, workspace, asked)
        job.ended.wait()
        shot = job.snapshot()
        begun = run_of(shot)
        rows = summary_list(told(read_comparison, studio.store, begun)) if begun else []
        if shot.state != "done":
            reasons = [f"{one['name']}: {one['error']}" for one in rows if one.get("error")]
            error = " ".join([shot.error or "The comparison was cancelled.", *reasons])
            raise gr.Error(error, print_exception=False)
        return {"run": begun, "methods": rows, "notes": [asked.left_out] if asked.left_out else []}

    def probe(request: gr.Request, prompt: str) -> dict[str, Any]:
        """Both answers to a prompt, before and after, each with its five likeliest next tokens."""
        told(check_kinds, probe, prompt=prompt)
        await_model(studio)
        workspace = own(request)
        return {"prompt": prompt, "badge": workspace.badge(), **asdict(told(ask, studio, workspace, prompt))}

    def undo(request: gr.Request) -> dict[str, Any]:
        """Take the last edit off; where there is none, nothing happens.

        Returns the weights that answer now (badge, run) and how many edits there are, those taken off among them.
        """
        told(own(request).undo)
        return _weights(own(request))

    def redo(request: gr.Request) -> dict[str, Any]:
        """Put the edit that was taken off on again; where there is none, nothing happens. Returns what `undo` does."""
        told(own(request).redo)
        return _weights(own(request))

    def reset(request: gr.Request) -> dict[str, Any]:
        """Back to the original weights; `redo` returns to the edit that was on. Returns what `undo` does."""
        told(own(request).reset)
        return _weights(own(request))

    for endpoint in (undo, redo, reset):
        gr.api(endpoint, api_name=endpoint.__name__)
    gr.api(upload, api_name="upload")
    gr.api(apply, api_name="apply", concurrency_limit=None)
    gr.api(compare, api_name="compare", concurrency_limit=None)
    gr.api(probe, api_name="probe", concurrency_id="model", concurrency_limit=1)


def await_model(studio: Studio) -> None:
    """Wait for a model that is being loaded, where there is none: a program has no sidebar to look at."""
    shot = studio.jobs.latest(LOADING) if studio.model is None else None
    if shot is not None and not shot.ended:
        studio.jobs.wait(shot.id, LOADING_SECONDS)


def uploaded_path(file: dict[str, Any]) -> Path:
    """Where Gradio put an uploaded file. Raises FactError for any other file of this machine."""
    path = Path(str(file.get("path", ""))).resolve()
    if not path.is_relative_to(Path(get_upload_folder()).resolve()):
        raise FactError("This file was not uploaded: send it with gradio_client's handle_file.")
    return path


def check_kinds(endpoint: Callable, **given: Any) -> None:
    """Raises EditingError for an argument that is not what the endpoint's annotation says."""
    for name, value in given.items():
        kind = get_type_hints(endpoint)[name]
        try:
            TypeAdapter(kind).validate_python(value, strict=True)
        except ValidationError as error:
            words = str(kind).removeprefix("<class '").removesuffix("'>").replace("typing.", "")
            raise EditingError(f"{name} is {value!r}: give it as {words}.") from error


def check_counts(**given: Any) -> None:
    """Raises EditingError for an argument that is no number of things."""
    for name, value in given.items():
        if type(value) is not int or value < 0:
            raise EditingError(f"{name} is {value!r}: give a whole number from 0 on.")


def known_hypernet(studio: Studio, method: str, name: str) -> Path | None:
    """The folder of a checkpoint that the page offers, the first one for ""; None when there is none at all."""
    found = dict(studio.hypernets(method))
    if not name:
        return next(iter(found.values()), None)
    if name not in found:
        offered = ", ".join(found) or "another method"
        raise CheckpointError(f"There is no hypernetwork {name!r} for {method}: choose {offered}.")
    return found[name]


def told(function, *arguments, **named):
    """Call it; what it refuses becomes an error that the client gets as a sentence."""
    try:
        return function(*arguments, **named)
    except (EditingError, StoreError, JobError) as error:
        raise gr.Error(str(error), print_exception=False) from error


def _batch(batch: FactBatch) -> dict[str, Any]:
    return {
        "facts": len(batch),
        "form": batch.form,
        "source": batch.source,
        "errors": [asdict(problem) for problem in batch.errors],
        "warnings": [asdict(problem) for problem in batch.warnings],
    }


def _weights(workspace: Workspace) -> dict[str, Any]:
    return {"badge": workspace.badge(), "run": workspace.run_id, "edits": len(workspace.edits)}
