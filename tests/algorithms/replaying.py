"""Streams of play in the shape of batches, and slow references of what a replay buffer makes of them."""

import numpy as np
import torch

FIRST, MID, LAST = 0, 1, 2


def play(num_lanes=2, steps=6, iterations=4, context=0, seed=0, ends=0.25):
    """Consecutive batches of lanes with random ends; observation o has the one number that tells lane and time.

    Each is a dict of tensors as in the field table; frames of earlier episodes are zero in the context, as workers have it.
    """
    random, total = np.random.default_rng(seed), steps * iterations
    kind, discount = np.full((num_lanes, total + 1), MID, np.uint8), np.ones((num_lanes, total), np.float32)
    episode = np.zeros((num_lanes, total + 1), np.int64)
    kind[:, 0] = FIRST
    for lane in range(num_lanes):
        for t in range(1, total + 1):
            was = kind[lane, t - 1]
            kind[lane, t] = FIRST if was == LAST else LAST if random.random() < ends else MID
            episode[lane, t] = episode[lane, t - 1] + (was == LAST)
            if kind[lane, t] == LAST:
                discount[lane, t - 1] = random.random() < 0.5  # terminated or truncated
    frame = 1 + np.arange(total + 1) + 1000 * np.arange(num_lanes)[:, None]  # [N, total + 1], never 0
    whole = {
        "step_type": kind,
        "episode": episode * num_lanes + np.arange(num_lanes)[:, None],
        "action": random.integers(3, size=(num_lanes, total)),
        "reward": (random.normal(size=(num_lanes, total)) * (kind[:, :-1] != LAST)).astype(np.float32),
        "discount": discount,
    }
    return [cut(whole, frame, i * steps, (i + 1) * steps, context) for i in range(iterations)]


def cut(whole, frame, start, end, context):
    fields = {name: array[:, start : end + (name in ("step_type", "episode"))].copy() for name, array in whole.items()}
    fields["collected"] = (whole["step_type"][:, :end] != LAST).sum(1)
    window = np.zeros((len(frame), context + end - start + 1, 2), np.int32)
    window[:, context:] = frame[:, start : end + 1, None]
    for back in range(1, min(context, start) + 1):
        same = whole["episode"][:, start - back] == whole["episode"][:, start]
        window[:, context - back] = (frame[:, start - back] * same)[:, None]
    fields["observation"] = window
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in fields.items()}


def joined(batches, context=0):
    """The batches as one long one."""
    long = {}
    for name in batches[0]:
        ahead = {"step_type": 1, "episode": 1, "observation": context + 1}.get(name, 0)
        parts = [batch[name][:, ahead:] if i and ahead else batch[name] for i, batch in enumerate(batches)]
        long[name] = torch.cat(parts, 1) if batches[0][name].ndim > 1 else batches[-1][name]
    return long


def slow_targets(batch, n, gamma, value):
    """{frame number: (action, target)} of all steps whose target is known, by the definition.

    value: the value of an observation, by its frame number.
    """
    found = {}
    frame = batch["observation"][:, -batch["step_type"].shape[1] :, 0].tolist()
    kind, reward, discount, action = (batch[name].tolist() for name in ("step_type", "reward", "discount", "action"))
    for lane in range(len(kind)):
        for t in range(len(reward[lane])):
            if kind[lane][t] == LAST:
                continue
            target, weight, at, count = 0.0, 1.0, t, 0
            while count < n and kind[lane][at] != LAST and at < len(reward[lane]) and weight:
                target += weight * reward[lane][at]
                weight *= gamma * discount[lane][at]
                at, count = at + 1, count + 1
            if count == n or kind[lane][at] == LAST or not weight:
                found[frame[lane][t]] = (action[lane][t], target + weight * value(frame[lane][at]))
    return found
