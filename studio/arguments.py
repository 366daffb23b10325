"""What a person writes after --set, --vary and --hypernet, read: settings by name, by method, as a grid."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from engine.checkpoint import read_card
from engine.editors import EDITORS
from engine.errors import FactError


def read_settings(pairs: list[str] | None, cls: type) -> dict[str, Any]:
    """NAME=VALUE pairs as the fields of a settings dataclass. Raises FactError for what does not fit."""
    kinds = {item.name: type(item.default) for item in fields(cls)}
    choices = {item.name: item.metadata["choices"] for item in fields(cls) if "choices" in item.metadata}
    values: dict[str, Any] = {}
    for pair in pairs or []:
        name, equals, text = pair.partition("=")
        if not equals or name not in kinds:
            raise FactError(f"--set {pair}: write NAME=VALUE, with one of {', '.join(kinds)}.")
        try:
            if kinds[name] is bool:
                values[name] = {"true": True, "on": True, "1": True, "false": False, "off": False, "0": False}[text.lower()]
            else:
                values[name] = kinds[name](text)
        except (ValueError, KeyError) as error:
            raise FactError(f"--set {pair}: {name} takes a {kinds[name].__name__}.") from error
        if values[name] not in choices.get(name, (values[name],)):
            raise FactError(f"--set {pair}: {name} takes one of {', '.join(choices[name])}.")
    return values


def read_grid(pairs: list[str] | None, cls: type) -> dict[str, tuple] | None:
    """Repeated NAME=VALUE pairs as the values of each field; None for no pair. Raises FactError as `read_settings`."""
    grid: dict[str, tuple] = {}
    for pair in pairs or []:
        for name, value in read_settings([pair], cls).items():
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
        method = read_card(folder)["settings"]["method"]
        if method in found:
            raise FactError(f"--hypernet {folder}: {found[method]} is for {method} too. Name one for each method.")
        found[method] = folder
    return found
