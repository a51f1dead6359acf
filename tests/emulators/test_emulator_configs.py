"""Every configs/emulator/*.yaml makes an emulator."""

from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from mpirl.build import settings_of
from mpirl.emulators.base import Frame
from mpirl.emulators.lanes import make_lanes

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "emulator").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_makes_lanes(path):
    config = OmegaConf.load(path)
    if OmegaConf.is_missing(config.emulator, "id"):
        config.emulator.id = "Acrobot-v1"
    node = OmegaConf.to_container(config.emulator, resolve=True)
    target, settings = settings_of(node, "emulator", provided=("num_lanes",))
    lanes = make_lanes(target, 1, settings)
    lanes.reset(np.array([1]), Frame.allocate(lanes.specs, 1))
    lanes.close()
    assert config.name and path.read_text().startswith("# @package _global_\n")
