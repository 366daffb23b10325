"""The command line's face: progress bars, tables and error sentences, through rich."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from engine.comparison import Result, Step
from engine.edit_record import RecordCard
from engine.editing import EditRun
from engine.errors import Cancelled
from engine.facts import FactBatch
from engine.grid_search import MEASURED, Trial
from engine.metrics import Output
from engine.progress import Progress as Report
from studio.comparison_record import Line, StoredComparison
from studio.comparison_table import cells, columns, reason
from studio.components.case_study import MAIN_PROTOCOL, one_line
from studio.components.markup import count
from studio.components.metric_cards import HEADLINE
from studio.components.numbers_table import claims, pair_text
from studio.console import printable, say, show_figures
from studio.records import method_title

KINDS = {"edit": "editing", "equivalent": "equivalent", "unrelated": "unrelated"}
# Two lines each, so that all of them stand in 120 columns.
NUMBERS = (
    "Layer", "\ncos(HᵀG, Δθ)", "‖HᵀG−Δθ‖\n/ ‖HᵀG‖", "\nHᵀG to M", "cos(Gₗ,\nGₗ₋₁)", "‖G‖\nkept", "\ncond(M)", "eff.\nrank",
    "‖Δθ‖\n/ ‖W‖", "largest\nσ of Δθ",
)  # fmt: skip
SHOWN_VALUES = 2
FORCED = "†"  # marks an output that was not generated


@contextmanager
def progress_bar(console: Console) -> Iterator[Report]:
    """A bar for each stage, on `console`, fed by the engine's progress callable.

    Ctrl+C, or a request to terminate, raises Cancelled at the next report, where nothing is half done; a second
    one stops at once.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # Off a terminal it would leave an empty line.
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks: dict[str, int] = {}
        asked: list[int] = []

        def stop(number: int, _frame: object) -> None:
            if asked:
                raise KeyboardInterrupt
            asked.append(number)
            console.print("Stopping as soon as nothing is half done. Ctrl+C again stops at once.", style="yellow")

        def report(stage: str, done: int, total: int) -> None:
            if asked:
                raise Cancelled
            # "MEMIT · Scoring": one bar for MEMIT, whatever it does.
            name = stage.partition(" · ")[0]
            if name not in tasks:
                tasks[name] = bar.add_task(stage, total=total)
            bar.update(tasks[name], completed=done, total=total, description=stage)

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield report
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def show_problems(console: Console, batch: FactBatch) -> None:
    """The warnings of a batch, the first few in full."""
    for problem in batch.warnings[:5]:
        say(console, str(problem), "yellow")
    if len(batch.warnings) > 5:
        say(console, f"… and {count(len(batch.warnings) - 5, 'more warning')}.", "yellow")


def show_edit(console: Console, run: EditRun, rows: int = 10) -> None:
    """The metrics and the case study of the first facts that have a failure, then others, `rows` facts at most."""
    show_metrics(console, run)
    console.print(case_table(run, rows))
    say(
        console,
        f"{count(run.n_facts, 'fact')} edited in {run.seconds:.2f} s, scored in {run.score_seconds:.2f} s; "
        f"peak memory {run.peak_memory_bytes / 1e9:.2f} GB; ‖Δθ‖ {run.delta.norm:.3g}",
    )
    for note in run.notes:
        say(console, note, "yellow")


def show_metrics(console: Console, run: EditRun) -> None:
    """Every metric under every protocol, before and after."""
    rows = []
    for one in run.outcome.metrics:
        interval = "" if one.low is None else f"{one.low:.3f} – {one.high:.3f}"
        rows.append([one.name, one.protocol, _figure(one.before), _figure(one.value), interval, str(one.n)])
    heads = ("Metric", "Protocol", "Before", "After", "95 % interval", "n")
    show_figures(console, f"{method_title(run.method)} on {run.model}", heads, rows, names=2)


def case_table(run: EditRun, rows: int) -> Table:
    """Table 4 of the paper: instance type, prompt, output before and after, ✓ or ✗ under the main protocol."""
    failed = {one.fact for one in run.outcome.instances if not one.success[MAIN_PROTOCOL[one.kind]]}
    shown = sorted({one.fact for one in run.outcome.instances}, key=lambda fact: (fact not in failed, fact))[:rows]
    table = Table(title=f"Case study: {len(shown)} of {count(run.n_facts, 'fact')}, failures first")
    table.add_column("Fact", min_width=len(str(run.n_facts)), overflow="fold")
    for name in ("Type", "Prompt", "Target", "Before", "After", ""):
        table.add_column(name, overflow="fold")
    for fact in shown:
        for one in (i for i in run.outcome.instances if i.fact == fact):
            good = one.success[MAIN_PROTOCOL[one.kind]]
            mark = Text("✓", "green") if good else Text("✗", "red")
            texts = [one.prompt, one.target, _said(one.before), _said(one.after)]
            table.add_row(str(fact + 1), KINDS[one.kind], *(Text(printable(one)) for one in texts), mark)
        table.add_section()
    shown_outputs = (output for one in run.outcome.instances if one.fact in shown for output in (one.before, one.after))
    if any(output.generated is None for output in shown_outputs):
        table.caption = f"{FORCED} teacher-forced argmax, not generated"
    return table


def show_part(console: Console, step: Step, result: Result) -> None:
    """A line for a method that has just ended, long before the table."""
    name = f"{step.name}, {count(step.n_facts, 'fact')}"
    if result.outcome is None:
        say(console, f"{name}: {result.error}", "red")
        return
    found = {key: result.outcome.metric(*key) for key in HEADLINE}
    scores = ", ".join(f"{name} {metric.value:.3f}" for (name, _), metric in found.items() if metric)
    took = f"; edited in {result.run.seconds:.2f} s" if result.run else ""
    say(console, f"{name}: {scores}{took}")


def show_comparison(console: Console, comparison: StoredComparison) -> None:
    """The table, the best values bold, and why a method is not in it; then a table for each size of the sweep."""
    if not any(line.done for line in comparison.lines):
        return
    title = f"{comparison.row['title']} on {comparison.row['model']}"
    show_lines(console, comparison.lines, title)
    for line in (*comparison.lines, *comparison.sweep):
        if not line.done:
            say(console, f"{line.name}, {count(line.n_facts, 'fact')}: {reason(line)}", "yellow")
        for note in line.notes if line.n_facts == len(comparison.facts) else ():
            say(console, f"{line.name}: {note}", "yellow")
    if comparison.waiting:
        say(console, f"Not begun: {', '.join(comparison.waiting)}", "yellow")
    for size in sorted({line.n_facts for line in comparison.sweep}):
        own = [line for line in comparison.sweep if line.n_facts == size]
        show_lines(console, own, f"The first {count(size, 'fact')}")


def show_lines(console: Console, lines: Sequence[Line], title: str) -> None:
    """The headline protocols: exact ES and GS, LS by agreement."""
    heads = ["Method", *("\n".join(filter(None, (column.title, column.unit))) for column in columns())]
    figures = [[Text(cell.text, "bold green" if cell.best else "") for cell in own] for own in cells(lines)]
    show_figures(console, title, heads, [[line.name, *own] for line, own in zip(lines, figures)])


def _said(output: Output) -> str:
    if output.generated is None:
        return f"{one_line(output.argmax)} {FORCED}"
    return one_line(output.generated)


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def show_trials(console: Console, title: str, trials: Sequence[Trial]) -> None:
    """The trials of a search, the best first: what was set beside the model's own, and means over the sets of facts."""
    heads = ["Settings", *(f"{name} {protocol}" for name, protocol in MEASURED.items()), "Score", "Seconds"]
    rows = []
    for trial in sorted(trials, key=lambda trial: trial.rank, reverse=True):
        figures = [trial.mean(name) for name in (*MEASURED, "Score")]
        seconds = trial.mean("seconds")
        took = "–" if seconds is None else f"{seconds:.1f}"
        rows.append([trial_text(trial), *map(_figure, figures), took])
    show_figures(console, title, heads, rows)


def trial_text(trial: Trial) -> str:
    """What was set, and why it failed where it did."""
    told = ", ".join(f"{name}={value}" for name, value in trial.settings.items()) or "the model's own"
    return f"{told}: {trial.error}" if trial.error else told


def trial_line(trial: Trial) -> str:
    """A trial as it ends."""
    figures = [f"{name} {_figure(trial.mean(name))}" for name in (*MEASURED, "Score")]
    return trial_text(trial) if trial.error else f"{trial_text(trial)}: {', '.join(figures)}"


def show_benchmark(console: Console, rows: Sequence[tuple[str, str]]) -> None:
    """Two columns: what, and its figure with its unit."""
    table = Table(title="Benchmark", show_header=False)
    table.add_column(overflow="fold")
    table.add_column(justify="right", overflow="fold")
    for name, figure in rows:
        table.add_row(name, figure)
    console.print(table)


def show_numbers(console: Console, card: RecordCard) -> None:
    """What each module's full matrices are to each other, before Eq. 4 → after, and the paper's claim counted."""
    rows = []
    for module, one in zip(card.modules, card.numbers):
        pairs = [pair_text(pair, 3) for pair in (one.cosine, one.distance, one.alignment)]
        shares = [_figure(one.cosine_to_previous), _figure(one.kept)]
        of_matrix = [f"{one.condition_number:.3g}", f"{one.effective_rank:.1f}"]
        values = " ".join(f"{value:.3g}" for value in one.singular_values[:SHOWN_VALUES])
        rows.append([str(module.layer), *pairs, *shares, *of_matrix, f"{one.relative_norm:.1e}", values])
    look = {"box": SIMPLE_HEAD, "padding": (0, 1, 0, 0), "pad_edge": False}
    show_figures(console, "Numbers, from the full matrices", NUMBERS, rows, **look)
    for line in claims(card.numbers):
        say(console, line)
