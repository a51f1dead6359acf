"""The parts of a role, made from the config's nodes and agreed on by all ranks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from mpirl import seeds
from mpirl.agreement import agree
from mpirl.build import build, settings_of
from mpirl.device import choose_device, choose_precision, has_bfloat16, one_thread
from mpirl.emulators.base import EmulatorBatch, Frame
from mpirl.emulators.lanes import make_emulator
from mpirl.errors import AgreedError
from mpirl.models.base import Distribution, Model, is_small
from mpirl.plan import Plan, single_threaded
from mpirl.specs import Specs
from mpirl.trajectory import Layout
from mpirl.transport.base import Group

MODEL_LOCK = threading.Lock()  # ranks that are threads share torch's random state


class LazyEmulator(EmulatorBatch):
    """A second batch of emulators like `twin`, made at the first reset."""

    def __init__(self, twin: EmulatorBatch, make: Callable[[], EmulatorBatch]):
        self.specs, self.num_lanes, self.reseed_every = twin.specs, twin.num_lanes, twin.reseed_every
        self._make = make
        self._batch: EmulatorBatch | None = None

    def reset(self, seed: np.ndarray, out: Frame) -> None:
        self._batch = self._batch or self._make()
        self._batch.reset(seed, out)

    def step(self, action: np.ndarray, seed: np.ndarray, out: Frame) -> None:
        assert self._batch is not None
        self._batch.step(action, seed, out)

    def close(self) -> None:
        if self._batch:
            self._batch.close()


def draw_noise(distribution: Distribution, generator: np.random.Generator, steps: int) -> np.ndarray:
    """The noise that the actions of one lane take, float32 [steps, noise_size]."""
    shape = (steps, distribution.noise_size)
    if distribution.noise_kind == "normal":
        return generator.standard_normal(shape, np.float32)
    return generator.random(shape, np.float32)


def make_model(config: Mapping[str, Any], specs: Specs) -> tuple[Model, Layout]:
    """The model, initialised by the run's seed alike on every rank, and the layout of the trajectories it works on."""
    algorithm, settings = settings_of(config["algorithm"], "algorithm", ("model", "specs"))
    with MODEL_LOCK, one_thread():  # how many there are would change the last bits
        torch.manual_seed(seeds.episode_seed(config["seed"], 0, seeds.MODEL))
        model = build(algorithm.model_node(config["model"], settings), "model", specs=specs)
    extras = algorithm.extras(specs)
    return model, Layout(specs, config["steps"], context=model.frame_stack - 1, core=model.core_size, extras=extras)


def agree_on_model(config: Mapping[str, Any], group: Group, plan: Plan, specs: Specs) -> tuple[Model, Layout, Plan]:
    """* The model, the layout, and the plan with the threads that suit the model's size."""
    group.milestones.reach("emulators")
    model, layout = agree(group, lambda: make_model(config, specs))[0]
    group.milestones.reach("model")
    return model, layout, single_threaded(plan, config["placement"]) if is_small(model) else plan


def agree_on_precision(config: Mapping[str, Any], group: Group, model: Model, specs: Specs) -> tuple[torch.device, str]:
    """* This rank's device and precision. Rank 0 chooses; a worker, on its CPU, follows where its hardware can."""

    def choose() -> tuple[torch.device, str]:
        if group.rank:
            return torch.device("cpu"), ""
        device = choose_device(config["device"])
        return device, choose_precision(config["precision"], model, specs, device)

    (device, _), precisions = agree(group, choose, lambda chosen: chosen[1])
    group.milestones.reach("precision")
    follows = group.rank == 0 or config["precision"] != "auto" or has_bfloat16(device)
    return device, precisions[0] if follows else "fp32"


def agree_on_emulator(
    config: Mapping[str, Any], group: Group, plan: Plan, make: Callable[..., Any] = make_emulator
) -> tuple[Any, Specs]:
    """* Make the workers' emulators, with what `make` makes in place of an EmulatorBatch, and agree on their specs."""
    make_own = lambda: make(config, plan.lanes[group.rank], plan.emulator[group.rank]) if group.rank else None
    emulator, all_specs = agree(group, make_own, lambda made: made.specs if made else None)
    for rank in range(2, group.size):
        if all_specs[rank] != all_specs[1]:
            raise AgreedError(
                f"the emulators differ: rank 1 on {plan.hosts[1]} has {all_specs[1]}, "
                f"rank {rank} on {plan.hosts[rank]} has {all_specs[rank]}; all workers need the same specs"
            )
    return emulator, all_specs[1]
