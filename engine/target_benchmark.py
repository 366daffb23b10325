"""How much faster the z* of many facts are found in one batch than one fact at a time, by the same code in one run."""

import time
from collections.abc import Sequence

from engine.contexts import make_contexts, make_prefixes
from engine.editing import make_editor
from engine.editors.memit import Memit
from engine.errors import EditingError
from engine.facts import Fact
from engine.method_settings import resolved
from engine.model import EditableModel
from engine.progress import Progress, silent
from engine.subjects import find_subjects
from engine.targets import find_targets


def measure_targets(
    model: EditableModel, facts: Sequence[Fact], method: str, progress: Progress = silent
) -> list[tuple[str, str]]:
    """Rows (what, figure with its unit) for the target states of `facts` by `method`, with its settings for the model.

    Raises EditingError for a method without target states, FactError for facts that cannot be edited.
    """
    editor, _ = make_editor(model, method)
    if not isinstance(editor, Memit):
        raise EditingError(f"{editor.title} has no target states z* to time: choose memit, pmet, emmet or alphaedit.")
    settings, last = resolved(editor.settings, model, method), editor.modules(model)[-1]
    prefixes, places, rule = make_prefixes(model, settings.seed), editor.places(model, last), editor.rule(settings)
    subjects, _ = find_subjects(facts)
    together = make_contexts(model, facts, subjects, prefixes)
    alone = [make_contexts(model, [fact], [subject], prefixes) for fact, subject in zip(facts, subjects)]
    started = time.perf_counter()
    found = find_targets(model, together, places, last.layer, rule, progress)
    batched = time.perf_counter() - started
    started = time.perf_counter()
    for index, contexts in enumerate(alone):
        progress("Targets one at a time", index, len(alone))
        find_targets(model, contexts, places, last.layer, rule)
    single = time.perf_counter() - started
    return [
        (f"{editor.title}: target states", f"{len(facts)}"),
        (f"{editor.title}: in one batch, seconds a fact", f"{batched / len(facts):.2f} s"),
        (f"{editor.title}: one at a time, seconds a fact", f"{single / len(facts):.2f} s"),
        (f"{editor.title}: one at a time over in one batch", f"{single / batched:.2f}×"),
        (f"{editor.title}: tokens per second in one batch", f"{found.tokens / batched:.0f}"),
    ]
