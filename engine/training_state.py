"""What a training goes on from: its hypernetwork, Adam's state and how far it was, in one safetensors file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.errors import CheckpointError
from engine.hypernet import HyperNet

STATE = "training.safetensors"
FREE_ON_RESUME = frozenset(
    "steps learning_rate scalar_rate warmup kappa clip smallest_batch largest_batch outer_facts "
    "validate_every valid_facts cache_gb".split()
)


@dataclass(frozen=True)
class TrainingState:
    """step, seconds: how far it was; best: the highest mean Score; scores: its validations; card: the checkpoint's.

    tensors: the hypernetwork's by `hypernet.NAME`, Adam's by `optimiser.KEY.NAME`, all float32.
    """

    step: int
    seconds: float
    best: float
    scores: list[dict]
    card: dict[str, Any]
    tensors: Mapping[str, Tensor]

    @staticmethod
    def tensors_of(hypernet: HyperNet, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
        """What has to be kept of the two."""
        kept = {f"hypernet.{name}": tensor for name, tensor in hypernet.state_dict().items()}
        for name, parameter in hypernet.named_parameters():
            for key, value in optimiser.state.get(parameter, {}).items():
                kept[f"optimiser.{key}.{name}"] = value
        return {name: tensor.detach().cpu().contiguous() for name, tensor in kept.items()}

    def save(self, folder: Path) -> None:
        """Write the file, whole or not at all."""
        meta = {"step": str(self.step), "seconds": str(self.seconds), "best": str(self.best)}
        meta |= {"scores": json.dumps(self.scores), "card": json.dumps(self.card)}
        whole = folder / (STATE + ".part")
        save_file(dict(self.tensors), whole, meta)
        whole.replace(folder / STATE)

    @classmethod
    def load(cls, folder: Path, device: torch.device | str) -> "TrainingState":
        """What was saved in the folder. Raises CheckpointError when nothing was, or it is damaged."""
        path = folder / STATE
        if not path.exists():
            raise CheckpointError(f"{folder} holds no training to resume: start one there first.")
        try:
            with safe_open(path, "pt") as file:
                meta = file.metadata()
            tensors = load_file(path, device=str(device))
            far = int(meta["step"]), float(meta["seconds"]), float(meta["best"])
            return cls(*far, json.loads(meta["scores"]), json.loads(meta["card"]), tensors)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise CheckpointError(f"{path} is damaged, the training cannot go on from it: {error}") from error

    def changed(self, card: Mapping[str, Any], folder: Path) -> dict[str, list]:
        """The settings that are others than in the `card` of the training that goes on: [before, now] by name.

        Raises CheckpointError where one of them, the facts or the model must not be another.
        """
        mine, its = card["settings"], self.card["settings"]
        its = {"rounds": 1, "old_keys": 0.0} | its  # trainings from before there were any
        changed = {key: [its.get(key), mine[key]] for key in mine if mine[key] != its.get(key)}
        differing = [key for key in changed if key not in FREE_ON_RESUME]
        its_data, data = self.card["data"].values(), card["data"].values()
        noted = "train_sha256" if all("train_sha256" in part for part in its_data) else "train"  # only that once
        if [part[noted] for part in its_data] != [part[noted] for part in data]:
            differing.append("the training facts")
        if self.card["model_sha256"] != card["model_sha256"]:
            differing.append("the model")
        if differing:
            raise CheckpointError(
                f"The training in {folder} was started with other settings: {', '.join(differing)}. "
                "Choose the same ones, or another folder."
            )
        return changed

    def restore(self, hypernet: HyperNet, optimiser: torch.optim.Optimizer) -> None:
        """Put both where they were."""
        network = {name: tensor for name, tensor in self.tensors.items() if name.startswith("hypernet.")}
        hypernet.load_state_dict({name.removeprefix("hypernet."): tensor for name, tensor in network.items()})
        for name, parameter in hypernet.named_parameters():
            kept = {
                key.split(".")[1]: value.cpu() if key.startswith("optimiser.step.") else value  # where Adam keeps it
                for key, value in self.tensors.items()
                if key.startswith("optimiser.") and key.split(".", 2)[2] == name
            }
            if kept:
                optimiser.state[parameter] = kept
