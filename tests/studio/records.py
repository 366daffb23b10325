"""Facts, instances and metrics for the database's tests, and a finished edit with them."""

from sqlite_utils import Database

from engine.facts import Fact
from engine.metrics import Instance, Metric, Output

PARIS = Fact(
    "The capital of France is",
    "Lyon",
    equivalent=("France's capital city is", "France is governed from"),
    unrelated=(("The capital of Italy is", "Rome"), ("Water boils at", "")),
    subject="France",
    old_target="Paris",
    row=7,
)
PLAIN = Fact("The Eiffel Tower is in", "Rome")
INSTANCES = [
    Instance(
        0,
        "edit",
        PARIS.prompt,
        "Lyon",
        Output("Paris", "Paris, of course"),
        Output("Lyon", "Lyon, since today"),
        {"exact": 1.0, "token": 1.0, "generated": 1.0},
        {"exact": 0.0, "token": 0.5, "generated": None},
    ),
    Instance(0, "unrelated", "Water boils at", "100", Output("100"), Output("90"), {"label": None}, {"label": None}),
    Instance(1, "edit", PLAIN.prompt, "Rome", Output("Paris"), Output("Rome"), {"exact": 1.0}, {"exact": 0.0}),
]
METRICS = [Metric("ES", "exact", 1.0, 0.0, 2, 0.34, 1.0), Metric("Score", "exact+agreement", None, None, 0, None, None)]


def plain(store):
    """The same file as anyone with sqlite-utils reads it."""
    return Database(store.path)


def edit(store, session, facts=(PARIS, PLAIN), **columns):
    """A finished edit with its facts."""
    run = store.start_run(session, "edit", **columns)
    store.record_facts(run, facts)
    store.finish_run(run)
    return run
