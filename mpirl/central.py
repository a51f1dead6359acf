"""policy=central among the roles: an actor on rank 0 decides for the lanes of workers that take turns."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mpirl import seeds
from mpirl.acting import Actor
from mpirl.assembly import draw_noise
from mpirl.build import TARGET, build, locate
from mpirl.device import autocast_for, pinned
from mpirl.models.base import Model
from mpirl.policies.central import Central, Messages, answer_dtype, question_dtype
from mpirl.policies.local import LocalPolicy
from mpirl.trajectory import Trajectory
from mpirl.transport.base import Group
from mpirl.turns import Parts, Turns, make_workers, vote
from mpirl.worker import Lanes

if TYPE_CHECKING:
    from mpirl.role import Role

Config = Mapping[str, Any]
LOCAL = {TARGET: "mpirl.policies.local.local_policy"}


def central_of(config: Config) -> Central | None:
    """The settings of policy=central, None with a policy that acts on the workers."""
    node = config.get("policy") or LOCAL
    return build(node, "policy") if getattr(locate(node[TARGET], "policy"), "is_central", False) else None


def bytes_per_weight(config: Config) -> int:
    """That a broadcast takes: none where rank 0 acts for all."""
    return 0 if central_of(config) else {"fp32": 4, "bf16": 2}[config["wire"]["weights"]]


def emulator_maker(central: Central, lanes: Sequence[int], rank: int) -> Callable[..., Parts]:
    """What makes a rank's emulators in place of `make_emulator`."""
    counts = [slot[rank] for slot in central.split(lanes)]
    return lambda config, num_lanes, changes: Parts(config, counts, changes)


@torch.no_grad()
def copy_weights(source: Model, target: Model) -> None:
    """What a broadcast does for policies on workers; on one device."""
    for new, tensor in zip(source.state_dict().values(), target.state_dict().values()):
        tensor.copy_(new)


def add_acting(
    role: Role,
    config: Config,
    group: Group,
    central: Central,
    parts: Parts | None,
    model: Model,
    device: torch.device,
    begin: Callable[[], None],
    index: np.ndarray,
    evaluation: Trajectory,
    say: Callable[[str], None],
) -> None:
    """* Every rank's parts in acting. Rank 0 acts with a copy of the learner's model, the workers need no weights.

    parts: a worker's emulators. index: int64 [lanes of all], their first episodes. evaluation: this rank's trajectory for it.
    """
    dtypes = question_dtype(role.layout, model.distribution.noise_size), answer_dtype(role.layout)
    messages = Messages(group, central.split(role.lanes), *dtypes, pinned(device) if group.rank == 0 else np.zeros)
    plays_on = partial(vote, group, role.lanes)
    role.is_central = True
    if parts is None:
        acting = copy.deepcopy(model)  # the evaluation comes after the update and is of the weights before
        policy = LocalPolicy(acting, autocast_for(device, role.precision), tuple(role.layout.extras))
        make_actor = partial(Actor, policy, messages, device, plays_on=plays_on, patient=group.patient)
        update = lambda: (begin(), copy_weights(model, acting))
        role.worker = make_actor(trajectory=Trajectory.allocate(role.layout, 0), begin=update)
        role.evaluator = make_actor(trajectory=evaluation, begin=begin, greedy=True)
        return
    assert role.trajectory is not None
    first = role.plan.first_lane(group.rank)
    index = index[first : first + sum(messages.counts)]
    lanes = Lanes(first, role.plan.lanes_total, index, config["seed"], parts.reseed_every)
    noise, alive = partial(draw_noise, model.distribution), group.heartbeat
    workers = make_workers(parts.batches, messages, role.trajectory, lanes, noise, alive)
    role.worker = Turns(workers, role.trajectory, plays_on, alive, say, messages.steps.close)
    lanes = replace(lanes, index=np.zeros_like(index), stream=seeds.EVALUATION)
    role.evaluator = Turns(make_workers(parts.others(), messages, evaluation, lanes, None, alive), evaluation, plays_on, alive)
