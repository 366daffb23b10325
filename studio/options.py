"""The arguments and options of the command line that need more than a line, with their help."""

from dataclasses import fields
from pathlib import Path
from typing import Annotated

import typer

from engine.projection import ProjectionSettings
from engine.train_settings import TrainSettings

FactsFile = Annotated[
    Path, typer.Argument(help="CSV, JSON or JSONL: studio columns, CounterFact, zsRE or SelfCheckGPT")
]
ModelName = Annotated[str, typer.Option("--model", help="embedded, a hub id of a causal model, or a folder")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N, mps, or balanced over all GPUs")]
Dtype = Annotated[str, typer.Option(help="of the language model: auto, float32, bfloat16 or float16")]
Database = Annotated[
    Path | None, typer.Option("--db", help="SQLite file that keeps every run", show_default="in the cache")
]
Hypernet = Annotated[
    Path | None, typer.Option(help="folder of a hypernetwork checkpoint", show_default="a shipped one")
]
Pattern = Annotated[str | None, typer.Option(help="edited matrix of an unknown family, {} for the layer's number")]
Pairs = Annotated[list[str] | None, typer.Option("--set", help="a setting of the method, NAME=VALUE; may be repeated")]


def _all_of(settings: type) -> str:
    """Every setting of the dataclass as NAME=DEFAULT, to be copied and changed."""
    words = {True: "on", False: "off"}
    pairs = [(item.name, item.default) for item in fields(settings)]
    return ", ".join(f"{name}={words[value] if isinstance(value, bool) else value}" for name, value in pairs)


TrainPairs = Annotated[
    list[str] | None, typer.Option("--set", help=f"NAME=VALUE, may be repeated; defaults: {_all_of(TrainSettings)}")
]
ProjectionPairs = Annotated[
    list[str] | None, typer.Option("--set", help=f"NAME=VALUE, may be repeated; defaults: {_all_of(ProjectionSettings)}")
]
