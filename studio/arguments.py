"""What a person writes after --set, --vary and --hypernet, read: settings by name, by method, as a grid."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from engine.checkpoint import CHECKPOINT_FILES, read_card
from engine.comparison import ABLATIONS, Entry
from engine.editors import EDITORS
from engine.errors import CheckpointError, FactError
from studio.comparisons import entries_of
from studio.trainings import best_saved

TAKES = {bool: "on or off", int: "a whole number", float: "a number such as 0.5"}


def read_settings(pairs: list[str] | None, cls: type, option: str = "--set") -> dict[str, Any]:
    """NAME=VALUE pairs as the fields of a settings dataclass. Raises FactError for what does not fit."""
    kinds = {item.name: type(item.default) for item in fields(cls)}
    choices = {item.name: item.metadata["choices"] for item in fields(cls) if "choices" in item.metadata}
    files = {item.name for item in fields(cls) if item.metadata.get("file")}
    values: dict[str, Any] = {}
    for pair in pairs or []:
        name, equals, text = pair.partition("=")
        if not equals or name not in kinds:
            raise FactError(f"{option} {pair}: write NAME=VALUE, with one of {', '.join(kinds)}.")
        try:
            if kinds[name] is bool:
                values[name] = {"true": True, "on": True, "1": True, "false": False, "off": False, "0": False}[text.lower()]
            else:
                values[name] = kinds[name](text)
        except (ValueError, KeyError) as error:
            raise FactError(f"{option} {pair}: {name} takes {TAKES[kinds[name]]}.") from error
        if values[name] not in choices.get(name, (values[name],)):
            raise FactError(f"{option} {pair}: {name} takes one of {', '.join(choices[name])}.")
        if name in files and text:
            values[name] = str(Path(text).expanduser().absolute())  # a run is done again from any folder
    return values


def read_grid(pairs: list[str] | None, cls: type) -> dict[str, tuple] | None:
    """Repeated NAME=VALUE pairs as the values of each field; None for no pair. Raises FactError as `read_settings`."""
    grid: dict[str, tuple] = {}
    for pair in pairs or []:
        for name, value in read_settings([pair], cls, "--vary").items():
            grid[name] = (*grid.get(name, ()), value)
    return grid or None


def settings_by_method(pairs: list[str] | None) -> dict[str, dict[str, Any]]:
    """METHOD.NAME=VALUE pairs as settings of each method. Raises FactError for what does not fit."""
    own: dict[str, list[str]] = {}
    for pair in pairs or []:
        method, dot, rest = pair.partition(".")
        if not dot or method not in EDITORS:
            raise FactError(f"--set {pair}: write METHOD.NAME=VALUE, with one of {', '.join(EDITORS)}.")
        own.setdefault(method, []).append(rest)
    return {method: read_settings(rest, EDITORS[method].Settings) for method, rest in own.items()}


def hypernets_by_method(folders: list[Path] | None) -> dict[str, Path]:
    """Checkpoint folders by the method they were trained for. Raises EditingError for two of one method."""
    found: dict[str, Path] = {}
    for folder in folders or []:
        method = checked_hypernet(folder)["settings"]["method"]
        if method in found:
            raise FactError(f"--hypernet {folder}: {found[method]} is for {method} too. Name one for each method.")
        found[method] = folder.absolute()  # the command that repeats it names it too
    return found


def checked_hypernet(folder: Path, option: str = "--hypernet") -> dict[str, Any]:
    """The card of the checkpoint in `folder`. Raises CheckpointError, which names it where a training's folder is meant."""
    try:
        return read_card(folder)
    except CheckpointError:
        with suppress(OSError):
            if saved := best_saved(folder):
                told = f"{option} {folder}: this is the folder of a training. Its checkpoint is {saved}: name that."
                raise CheckpointError(told) from None
        raise


def refuse_hypernet(folder: Path | None, methods: Iterable[str]) -> None:
    """Raises EditingError for --hypernet where no method would use it, or with a folder that holds none."""
    if folder is None:
        return
    editors = [EDITORS[method] for method in methods if method in EDITORS]
    if editors and not any("hypernetwork" in editor.needs for editor in editors):
        titles = " and ".join(editor.title for editor in editors)
        raise FactError(f"--hypernet {folder}: {titles} takes no hypernetwork. Leave it out, or choose another method.")
    checked_hypernet(folder)


def start_files(folder: Path | None) -> list[Path]:
    """The files of the checkpoint that a training begins with. Raises CheckpointError as `checked_hypernet`."""
    if folder is None:
        return []
    checked_hypernet(folder, "--start")
    return [folder / name for name in CHECKPOINT_FILES]


def read_entries(
    methods: str, ablations: bool, pairs: list[str] | None, folders: list[Path] | None
) -> tuple[Entry, ...]:
    """What --methods, --ablations, --set and --hypernet ask to be compared. Raises EditingError for what cannot be."""
    keys = [*(one.strip() for one in methods.split(",")), *(f"agrade:{name}" for name in ABLATIONS if ablations)]
    own, hypernets = settings_by_method(pairs), hypernets_by_method(folders)
    entries = entries_of(list(dict.fromkeys(keys)), own, hypernets)
    refuse_unused(entries, {"--set": own, "--hypernet": hypernets}, "--methods")
    return entries


def refuse_unused(entries: Iterable[Entry], given: Mapping[str, Iterable[str]], methods: str) -> None:
    """Raises FactError where something is `given`, by what it is called, for a method that is not compared.

    `methods`: what the list of those that are is called.
    """
    for option, names in given.items():
        if unused := ", ".join(sorted(set(names) - {entry.method for entry in entries})):
            raise FactError(f"{option} is given for {unused}, which is not compared: leave it out, or add it to {methods}.")
