"""What travels: weights rounded to bfloat16 on request, and a gather per host that changes nothing; in worlds of threads."""

import numpy as np
import pytest
import torch
from torch import nn

from mpirl.config import compose_job
from mpirl.device import PublishedWeights
from mpirl.errors import UserError
from mpirl.models.stacking import stack_at
from mpirl.role import plan_world, take_role
from mpirl.schedule import Command
from mpirl.transport.threads import run_threads
from mpirl.weights import FlatWeights, ReceivedWeights

VALUES = (1.0, 1.00390625, 1.01171875, -3.1415927, 1e-30, 0.0)  # the second and third lie halfway between two of bfloat16


def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 1))


def play(*overrides: str, ranks: int = 3):
    """(weights broadcast, learner's float32 [P]) of rank 0, and of the workers (model's float32 [P], trajectory, model)."""
    config = compose_job(["emulator=catch", "steps=4", "placement.lanes_per_worker=2", "precision=fp32", *overrides]).config

    def rank(group):
        role = take_role(config, group, plan_world(config, group))
        group.broadcast(role.weights)
        if group.rank == 0:
            return role.weights.copy(), role.learner.state_dict()["weights"].numpy()
        role.worker.collect(Command(1, 0))
        model = role.worker.policy.model
        return np.concatenate([p.detach().ravel().numpy() for p in model.parameters()]), role.trajectory, model

    return run_threads(ranks, rank, deadline=30)


def test_bf16_publishes_the_nearest_numbers_of_half_the_bytes_and_keeps_the_learners():
    flat = FlatWeights(module())
    flat.vector[: len(VALUES)] = torch.tensor(VALUES)
    before = flat.vector.clone()
    published = PublishedWeights(flat, "bf16")
    assert published.array.dtype == np.uint16 and 2 * published.array.nbytes == before.numpy().nbytes
    rounded = (published.array.astype(np.uint32) << 16).view(np.float32)
    assert rounded[:3].tolist() == [1.0, 1.0, 1.015625]  # halfway goes to the even one
    assert np.abs(rounded - before.numpy()).max() <= 2**-9 * np.abs(before.numpy()).max()
    assert torch.equal(flat.vector, before)


def test_publishing_follows_the_weights_and_receiving_loads_them():
    sender, receiver = PublishedWeights(FlatWeights(module()), "bf16"), ReceivedWeights(FlatWeights(target := module()), "bf16")
    with torch.no_grad():
        sender.flat.vector += 1
    sender.publish()
    receiver.array[:] = sender.array
    receiver.load()
    assert torch.equal(target[0].weight, (module()[0].weight + 1).bfloat16().float())


def test_fp32_weights_are_received_into_the_model_itself():
    flat = FlatWeights(module())
    received = ReceivedWeights(flat)
    assert np.shares_memory(received.array, flat.array)
    received.load()
    assert PublishedWeights(flat).array.dtype == np.float32


def test_workers_act_with_rounded_weights_and_record_their_log_probabilities():
    (sent, kept), *workers = play("wire.weights=bf16")
    assert sent.dtype == np.uint16 and kept.dtype == np.float32
    rounded = torch.from_numpy(kept).bfloat16().float().numpy()
    assert (rounded != kept).any()
    for weights, trajectory, model in workers:
        np.testing.assert_array_equal(weights, rounded)
        frames = stack_at(trajectory["observation"], 0, np.zeros(2, np.int64), trajectory.layout.context + 1)
        with torch.no_grad():
            output, _ = model({"observation": torch.from_numpy(frames)}, torch.zeros(2, dtype=torch.uint8), torch.zeros(2, 0))
        expected = model.distribution.log_prob(output.parameters, torch.from_numpy(trajectory["action"][:, 0]))
        np.testing.assert_array_equal(trajectory["log_prob"][:, 0], expected.numpy())


def test_gather_by_host_changes_nothing_in_a_world_of_threads():
    direct, host = (play(f"wire.gather={way}")[1:] for way in ("direct", "host"))
    for one, other in zip(direct, host):
        for name in one[1]:
            np.testing.assert_array_equal(one[1][name], other[1][name])


@pytest.mark.parametrize("override", ["wire.gather=hosts", "wire.weights=fp16"])
def test_unknown_wire_is_refused(override):
    with pytest.raises(UserError, match=f"{override.replace('=', '=.')}.*choose one of"):
        compose_job(["emulator=catch", override])


def test_runs_saved_before_there_was_a_choice_go_directly_in_float32(tmp_path):
    job = compose_job(["emulator=catch", f"run_dir={tmp_path}"])
    lines = job.text.splitlines(keepends=True)
    start = lines.index("wire:\n")
    (tmp_path / "config.yaml").write_text("".join(lines[:start] + lines[start + 3 :]))
    again = compose_job(["resume=true", f"run_dir={tmp_path}"]).config
    assert again["wire"] == {"gather": "direct", "weights": "fp32"}
