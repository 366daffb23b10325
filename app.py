"""The one door: `python app.py` opens the studio; `python app.py edit|compare|train|tune|project|…` needs no page."""

# ruff: noqa: E402
import gc
import signal

# While the imports below go on there is nothing to put right: Ctrl+C ends it, without their traceback.
STARTING = __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler
if STARTING:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
gc.disable()  # what imports make is there to stay: looking for garbage meanwhile takes a fifth of the start

import json
import logging
from pathlib import Path
from random import Random
from typing import Annotated

import typer

from engine import embedded
from engine.comparison import Result, Step
from engine.delta import FORMAT as DELTA_FORMAT
from engine.edit_record import KINDS
from engine.editors import EDITORS
from engine.errors import Cancelled, CheckpointError, EditingError, FactError
from engine.fact_readers import read_facts
from engine.model import EMBEDDED
from engine.projection import ProjectionSettings
from engine.recorder import ROWS
from engine.train_settings import TrainSettings
from studio.arguments import checked_hypernet, read_entries, read_grid, read_settings, refuse_hypernet, start_files
from studio.comparison_files import EXPORTED, export_comparison
from studio.comparison_record import read_comparison
from studio.comparisons import CompareRequest, execute_comparison, read_sizes
from studio.components.markup import count
from studio.components.point_labels import COLOURS
from studio.connection import StoreError
from studio.console import make_console, say
from studio.disk import disk_errors, refuse_foreign, refuse_overwriting
from studio.options import (
    Database,
    Device,
    Dtype,
    FactsFile,
    Hypernet,
    ModelName,
    Pairs,
    Pattern,
    ProjectionPairs,
    TrainPairs,
)
from studio.records import keep_record
from studio.runs import RESULTS, EditRequest, NotKeptError, execute_edit, own_defaults
from studio.scratch import scratch_folder
from studio.store import Store
from studio.studio import Studio
from studio.terminal import (
    progress_bar,
    show_benchmark,
    show_comparison,
    show_edit,
    show_numbers,
    show_part,
    show_problems,
    show_trials,
    trial_line,
)
from studio.training_run import TRAINING_FILES, TrainRequest, execute_training
from studio.trainings import check, name_sets, publish_late
from studio.tuning_run import TuneRequest, execute_tuning

gc.freeze()
gc.enable()

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=False)
console = make_console()


def open_studio(db: Path | None, hypernet: Path | None = None, origin: str = "command line") -> Studio:
    """The studio over its database, `db` or the one in the cache."""
    return Studio(Store(db or embedded.cache_path() / "studio.db"), hypernet, origin)


@cli.callback(invoke_without_command=True)
def studio_command(
    context: typer.Context,
    host: Annotated[str, typer.Option(help="address to listen on; 127.0.0.1 is this machine only")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="port to listen on")] = 7860,
    model: ModelName = EMBEDDED,
    device: Device = "auto",
    dtype: Dtype = "auto",
    db: Database = None,
    hypernet: Hypernet = None,
    module_pattern: Pattern = None,
) -> None:
    """Edit facts in language models. Without a command: open the studio in the browser's reach."""
    if context.invoked_subcommand is not None:
        return
    from studio.quick_gradio import import_gradio  # it still takes seconds; the other commands do not need it

    if hypernet is not None:
        checked_hypernet(hypernet)  # a folder without one is told here, not at the first edit
    with scratch_folder():
        import_gradio()
        from studio.layout import launch

        studio = open_studio(db, hypernet, "studio")
        try:
            publish_late(studio.hypernet_folders[0])
            launch(studio, host, port, (model, device, dtype, module_pattern), console)
        finally:
            studio.close()


@cli.command()
def edit(
    facts: FactsFile,
    method: Annotated[str, typer.Option(help=f"one of {', '.join(EDITORS)}")] = "agrade",
    out: Annotated[Path | None, typer.Option(help="folder for summary.json, facts.csv and the delta")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="edit only the first so many facts")] = None,
    generate: Annotated[int, typer.Option(min=0, help="facts whose prompts are also generated")] = 64,
    keep: Annotated[int, typer.Option(min=0, help="rows of each matrix kept for `project`; 0 for none")] = ROWS,
    settings: Pairs = None,
    model: ModelName = EMBEDDED,
    device: Device = "auto",
    dtype: Dtype = "auto",
    db: Database = None,
    hypernet: Hypernet = None,
    module_pattern: Pattern = None,
) -> None:
    """Edit the facts of a file, print before and after, and keep the run.

    AGRADE and MALMEN keep the unrelated prompts that the facts name; --set keep_unrelated=off measures as the paper does.
    """
    batch = read_facts(facts)
    batch = batch.only(batch.facts[:limit])
    show_problems(console, batch)
    if method not in EDITORS:
        raise FactError(f"Unknown method {method!r}: choose {', '.join(EDITORS)}.")
    chosen = own_defaults(method) | read_settings(settings, EDITORS[method].Settings)
    refuse_hypernet(hypernet, [method])
    refuse_overwriting(out, RESULTS.values(), [facts])
    refuse_foreign(out, RESULTS.values(), RESULTS["delta card"], DELTA_FORMAT)
    studio = open_studio(db)
    try:
        with progress_bar(console) as progress:
            studio.load_model(model, device, dtype, module_pattern, progress)
            session = studio.store.start_session(studio.origin, "edit")
            request, computed = EditRequest(batch, method, chosen, hypernet, generate, out, keep), []
            try:
                number, run = execute_edit(studio, session, request, progress, lambda *own: computed.append(own))
            except NotKeptError as error:
                show_edit(console, error.done)  # it took its time
                raise
        say(console, f"{model} on {studio.model.reason}")
        show_edit(console, run)
        say(console, f"Run {number} is kept in {studio.store.path}")
        with progress_bar(console) as progress:
            notes = [note for own in computed for note in keep_record(studio.store, *own, progress)]
        for note in notes:
            say(console, note, "yellow")
    finally:
        studio.close()


@cli.command()
def compare(
    facts: FactsFile,
    methods: Annotated[str, typer.Option(help="what to compare, such as agrade,agrade:no-c,memit")] = ",".join(EDITORS),
    ablations: Annotated[bool, typer.Option("--ablations", help="also the four rows of AGRADE's Table 2")] = False,
    sizes: Annotated[str, typer.Option(help="a sweep: also on so many first facts, such as 1,8,64")] = "",
    limit: Annotated[int | None, typer.Option(min=1, help="compare on only the first so many facts")] = None,
    shuffle: Annotated[int | None, typer.Option(help="seed of a random order, drawn before --limit")] = None,
    generate: Annotated[int, typer.Option(min=0, help="facts whose prompts are also generated")] = 64,
    settings: Annotated[list[str] | None, typer.Option("--set", help="METHOD.NAME=VALUE; may be repeated")] = None,
    hypernet: Annotated[list[Path] | None, typer.Option(help="checkpoint for its own method; may be repeated")] = None,
    out: Annotated[Path | None, typer.Option(help="folder for summary.json, tables, plots and the command")] = None,
    model: ModelName = EMBEDDED,
    device: Device = "auto",
    dtype: Dtype = "auto",
    db: Database = None,
    module_pattern: Pattern = None,
) -> None:
    """The same facts through several methods, each from the original weights; print the table and keep the runs."""
    batch = read_facts(facts)
    order = batch.facts if shuffle is None else tuple(Random(shuffle).sample(batch.facts, len(batch)))
    batch = batch.only(order[:limit])
    show_problems(console, batch)
    entries = read_entries(methods, ablations, settings, hypernet)
    request = CompareRequest(batch, entries, read_sizes(sizes), generate)
    if request.left_out:
        say(console, request.left_out, "yellow")
    refuse_overwriting(out, EXPORTED, [facts])
    refuse_foreign(out, EXPORTED, "command.txt", "app.py compare")
    if out is not None:
        with disk_errors(out):  # told now, not after the last method
            out.mkdir(parents=True, exist_ok=True)
    studio, started = open_studio(db), []
    try:
        with progress_bar(console) as progress:
            studio.load_model(model, device, dtype, module_pattern, progress)
            session = studio.store.start_session(studio.origin, "compare")

            def show(_run: int, step: Step, result: Result | None) -> None:
                if result is not None:
                    show_part(console, step, result)

            execute_comparison(studio, session, request, progress, show, started.append)
    finally:  # what was finished before an end of any kind is shown and written too
        try:
            for number in started:
                _show_comparison(studio, number, out)
        finally:
            studio.close()


def _show_comparison(studio: Studio, number: int, out: Path | None) -> None:
    comparison = read_comparison(studio.store, number)
    show_comparison(console, comparison)
    if out is not None:
        paths, notes = export_comparison(studio.store, comparison, out)
        say(console, f"{len(paths)} files are in {out}")
        for note in notes:
            say(console, note, "yellow")
    say(console, f"Run {number} is kept in {studio.store.path}")


@cli.command()
def train(
    facts: Annotated[list[Path], typer.Argument(help="training files")],
    out: Annotated[Path, typer.Option(help="folder of the training; its best/ is the checkpoint")],
    valid: Annotated[list[Path] | None, typer.Option(help="validation files; none: nothing is validated")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the folder's last checkpoint")] = False,
    start: Annotated[Path | None, typer.Option(help="a checkpoint's folder to begin with", show_default="at random")] = None,
    settings: TrainPairs = None,
    model: ModelName = EMBEDDED,
    device: Device = "auto",
    dtype: Dtype = "auto",
    db: Database = None,
    module_pattern: Pattern = None,
) -> None:
    """Train a hypernetwork for AGRADE, MALMEN or MEND, with live losses; stop with Ctrl+C, go on with --resume."""
    if resume and start:
        raise CheckpointError("--resume goes on from the folder's own checkpoint: leave --start out, or --resume.")
    chosen = TrainSettings(**read_settings(settings, TrainSettings))
    refuse_overwriting(out, TRAINING_FILES, [*facts, *(valid or []), *start_files(start)])
    train_facts, valid_facts = _named_facts(facts), _named_facts(valid or [])
    studio = open_studio(db)
    try:
        with progress_bar(console) as progress:
            check(chosen, studio.load_model(model, device, dtype, module_pattern, progress))
            session = studio.store.start_session(studio.origin, "train")
            request = TrainRequest(train_facts, valid_facts, chosen, out, resume, start, facts, valid or [])
            show = lambda record: console.print(json.dumps(_rounded(record)), highlight=False, soft_wrap=True)  # noqa: E731
            number, best = execute_training(studio, session, request, progress, show)
        say(console, f"The best checkpoint is {best}; run {number} is kept in {studio.store.path}")
    finally:
        studio.close()


@cli.command()
def project(
    run: Annotated[int, typer.Argument(help="number of an edit or training, as the History tab lists it")],
    out: Annotated[Path, typer.Option(help="folder for the PNG, SVG, HTML and CSV")],
    family: Annotated[str, typer.Option(help="figure3, features (M, HᵀG, Δθ) or tokens (H, ∇G, G)")] = "figure3",
    modules: Annotated[str | None, typer.Option(help="edited layers, such as 18,20", show_default="the last one")] = None,
    matrices: Annotated[str | None, typer.Option(help=f"among {', '.join(KINDS)}", show_default="the paper's")] = None,
    beside: Annotated[str, typer.Option(help="a second panel: layer:18, method:umap or run:12")] = "",
    colour: Annotated[str, typer.Option(help=f"one of {', '.join(COLOURS)}")] = "matrix",
    settings: ProjectionPairs = None,
    db: Database = None,
) -> None:
    """Draw what a run computed in two dimensions, as the paper's Figure 3 or by choice, without a browser tab."""
    from studio.projecting import DrawRequest, draw_files

    chosen = ProjectionSettings(**read_settings(settings, ProjectionSettings))
    studio = open_studio(db)
    try:
        with progress_bar(console) as progress:
            request = DrawRequest(run, family, modules, matrices, beside, colour, chosen)
            saved, card = draw_files(studio.store, request, out, progress)
        show_numbers(console, card)
        for path in saved.paths.values():
            say(console, f"Wrote {path}")
        for note in saved.notes:
            say(console, note, "yellow")
    finally:
        studio.close()


@cli.command()
def tune(
    facts: Annotated[list[Path], typer.Argument(help="files of facts; each is edited as one batch, or by --at-once")],
    method: Annotated[str, typer.Option(help=f"one of {', '.join(EDITORS)}")],
    valid: Annotated[
        list[Path] | None, typer.Option(help="facts on which the best settings are scored again; they choose nothing")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="only the first so many facts of each file")] = 64,
    at_once: Annotated[
        int | None, typer.Option(min=1, help="edit so many facts at a time, each time anew", show_default="all at once")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0, help="budget, beside the first trial")] = 1800,
    out: Annotated[Path | None, typer.Option(help="JSON of all trials; goes on with those it holds already")] = None,
    vary: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE, repeated: the values to try", show_default="the method's grid")
    ] = None,
    settings: Pairs = None,
    model: ModelName = EMBEDDED,
    device: Device = "auto",
    dtype: Dtype = "auto",
    db: Database = None,
    hypernet: Hypernet = None,
    module_pattern: Pattern = None,
) -> None:
    """Look for a method's best settings on some facts: exact ES and GS, LS by agreement, and their Score decide."""
    if method not in EDITORS:
        raise FactError(f"Unknown method {method!r}: choose {', '.join(EDITORS)}.")
    cls = EDITORS[method].Settings
    chosen, grid = read_settings(settings, cls), read_grid(vary, cls)
    refuse_hypernet(hypernet, [method])
    sets, others = _named_facts(facts, limit), _named_facts(valid or [], limit)
    studio = open_studio(db)
    try:
        with progress_bar(console) as progress:
            studio.load_model(model, device, dtype, module_pattern, progress)
            session = studio.store.start_session(studio.origin, "tune")
            request = TuneRequest(sets, method, others, grid, chosen, hypernet, seconds, out, at_once)
            show = lambda trial: say(console, trial_line(trial))  # noqa: E731
            number, found = execute_tuning(studio, session, request, progress, show)
        title = f"{EDITORS[method].title} on {', '.join(sets)}, {count(limit, 'fact')} at most"
        title += f", {at_once} at once" if at_once else ""
        show_trials(console, title, found.search.trials)
        if found.valid:
            show_trials(console, f"On {', '.join(others)}, which chose nothing", found.valid)
        say(console, f"Run {number} is kept in {studio.store.path}")
    finally:
        studio.close()


@cli.command()
def benchmark(
    facts: Annotated[Path | None, typer.Argument(help="facts to edit", show_default="the shipped samples")] = None,
    limit: Annotated[int, typer.Option(min=1, help="how many facts, at most")] = 1024,
    repeat: Annotated[int, typer.Option(min=1, help="timed runs; the median is printed")] = 3,
    model: ModelName = EMBEDDED,
    device: Device = "auto",
    dtype: Dtype = "auto",
    hypernet: Hypernet = None,
    module_pattern: Pattern = None,
    targets: Annotated[
        list[str] | None, typer.Option(help="instead, a method's target states in one batch and one at a time; may repeat")
    ] = None,
) -> None:
    """Seconds per 100 facts, tokens per second, share of the matrix-multiply rate and peak memory."""
    from engine.benchmark import measure
    from engine.loading import load_model
    from engine.target_benchmark import measure_targets

    refuse_hypernet(hypernet, targets or ["agrade"])
    paths = [facts] if facts else sorted((Path(__file__).parent / "assets" / "samples").glob("*.json"))
    chosen = [fact for path in paths for fact in read_facts(path).require().facts][:limit]
    with progress_bar(console) as progress:
        loaded = load_model(model, device, dtype, module_pattern, progress)
        if targets:
            rows = [row for method in targets for row in measure_targets(loaded, chosen, method, progress)]
        else:
            rows = measure(loaded, chosen, hypernet, repeat, progress)
    say(console, f"{model} on {loaded.reason}")
    show_benchmark(console, rows)


def _named_facts(paths: list[Path], limit: int | None = None) -> dict[str, tuple]:
    """The facts of each file, the first `limit` of them, by a short name; their warnings shown."""
    batches = [batch.only(batch.facts[:limit]) for batch in (read_facts(path).require() for path in paths)]
    for batch in batches:
        show_problems(console, batch)
    return name_sets(batches)


def _rounded(record: dict) -> dict:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in record.items()}


def main() -> None:
    """Run the command line; the errors a person can act on are printed as sentences, without a traceback."""
    logging.basicConfig(level=logging.WARNING)
    try:
        cli()
    except (EditingError, StoreError) as error:
        say(console, str(error), "red")
        raise SystemExit(1) from None
    except (Cancelled, KeyboardInterrupt):
        say(console, "Cancelled; what was saved before is kept.", "yellow")
        raise SystemExit(130) from None


if __name__ == "__main__":
    if STARTING:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
