"""Weights taken over from another run (`init_from`): its latest checkpoint's, or those of a certain one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mpirl import checkpoint
from mpirl.device import PublishedWeights
from mpirl.errors import UserError
from mpirl.rundir import CONFIG, RunDirectory


def initialize(weights: PublishedWeights, config: Mapping[str, Any]) -> None:
    """Load the weights, and nothing else, of the run or the checkpoint that `init_from` names."""
    place = Path(config["init_from"])
    path, state = find(place)
    there, here = len(state["weights"]), weights.flat.size
    made = model_of(path)
    is_other = made["_target_"] == config["model"]["_target_"] and made != config["model"] if made else False
    if there != here or is_other:
        raise UserError(
            f"init_from={place}: its weights do not fit. {path} holds {there:,} ({described(made)}), this run's model has "
            f"{here:,} ({described(config['model'])}): choose the model, and an emulator of the same specs, as there"
        )
    weights.load(state["weights"])
    print(f"began with the weights of {path} ({state['steps']:,} steps)", flush=True)


def find(place: Path) -> tuple[Path, dict[str, Any]]:
    """The checkpoint that a run's folder or a file means, and its state."""
    if place.is_file():
        return place, checkpoint.read(place)
    if not place.is_dir():
        raise UserError(f"init_from={place}: there is no such run or checkpoint; give a run's folder, or a file NNNNNNNN.pt")
    return checkpoint.load(RunDirectory(place).checkpoints)


def model_of(path: Path) -> Mapping[str, Any]:
    """The model node of the run that a checkpoint lies in; {} if it has been taken out of there."""
    file = path.parent.parent / CONFIG
    return yaml.safe_load(file.read_text()).get("model") or {} if file.is_file() else {}


def described(model: Mapping[str, Any]) -> str:
    """A model's node in words."""
    settings = [f"{key}={value}" for key, value in model.items() if key != "_target_"]
    return ", ".join([str(model.get("_target_", "a model of unknown settings")), *settings])
