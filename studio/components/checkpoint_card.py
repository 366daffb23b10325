"""A hypernetwork's card for people: what it was trained for, on what, how long, and how well it did."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from studio.components.clock import moment
from studio.components.markup import count, figure, seconds, text
from studio.components.panel import name_values
from studio.components.training_plot import curve_of
from studio.records import method_title


def card_html(card: Mapping[str, Any], folder: Path) -> str:
    """The card of the checkpoint in `folder` as HTML, all of its text escaped."""
    settings, modules = card["settings"], card["modules"]
    layers = spans(module["layer"] for module in modules)
    pairs = [
        ("Method", text(method_title(settings["method"]))),
        ("Model", f'{text(card["model"])} <span class="quiet">{text(card["model_sha256"][:12])}…</span>'),
        ("Edits", f"{count(len(modules), 'module')}, layer{'' if len(modules) == 1 else 's'} {layers}"),
        ("Data", "; ".join(_data(name, counts) for name, counts in card["data"].items())),
        ("Training", f"{card['steps']:,} of {settings['steps']:,} steps in {seconds(card['seconds'])}"),
        ("Saved", moment(card["trained"])),
    ]
    if begun := card.get("start"):
        pairs.insert(4, ("Began with", f"{text(begun['checkpoint'])}, {begun['steps'] or 0:,} steps"))
    best = curve_of(card["validation"]).best
    if best is not None:
        pairs += [(f"On {name}", _scores(scores)) for name, scores in best.scores.items()]
    if scales := card.get("step_scales"):
        told = ", ".join(f"{scale:g} × for {count(facts, 'fact')}" for facts, scale in scales)
        pairs.append(("Step of few facts", f"{told}, in lengths of the trained one"))
    pairs.append(("Folder", f"<code>{text(str(folder))}</code>"))
    listed = name_values([(name, text(str(value))) for name, value in settings.items()])
    return (
        f"<h3>{text(folder.name)}</h3>{name_values(pairs)}"
        f"<details><summary>All settings</summary>{listed}</details>{_tried(card.get('tried', ()))}"
    )


def spans(numbers: Iterable[int]) -> str:
    """12, 13, 14, 18 → "12–14, 18"."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{part[0]}–{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)


def _tried(trials: Iterable[str]) -> str:
    """What its makers tried before they chose these settings."""
    items = "".join(f"<li>{text(trial)}</li>" for trial in trials)
    return f"<details><summary>What was tried</summary><ul>{items}</ul></details>" if items else ""


def _data(name: str, counts: Mapping[str, int]) -> str:
    return f"{text(name)}: {count(counts['train'], 'fact')}, validated on {counts['valid']:,}"


def _scores(scores: Mapping[str, float | None]) -> str:
    return " · ".join(f"{text(name)} {figure(value)}" for name, value in scores.items())
