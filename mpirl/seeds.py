"""Seeds of episodes and noise of actions, as functions of what they belong to, so that no rank keeps random state."""

from __future__ import annotations

import numpy as np

EPISODE, ACTION, EVALUATION, LEARNING, MODEL = range(5)  # streams never share numbers


def episode_seed(run_seed: int, episode: int, stream: int = EPISODE) -> int:
    """The emulator seed, in [0, 2**31), of the episode with this global id."""
    state = np.random.SeedSequence([run_seed, stream, episode]).generate_state(1, np.uint32)
    return int(state[0] & 0x7FFFFFFF)


def generator(run_seed: int, stream: int, *key: int) -> np.random.Generator:
    """A generator that depends on (run seed, stream, key) alone; keys are non-negative integers."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([run_seed, stream, *key])))
