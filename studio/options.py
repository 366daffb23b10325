"""The arguments and options that several commands share, with their help."""

from pathlib import Path
from typing import Annotated

import typer

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
