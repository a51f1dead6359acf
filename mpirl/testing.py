"""Conformance kits for the extension points, and an emulator that counts.

A kit plays with what it is given and raises AssertionError with the claim that does not hold:

    from mpirl.testing import check_emulator
    from my_game import Game

    def test_my_game():
        check_emulator(Game)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mpirl.emulators.base import Emulator, Transition
from mpirl.errors import RankFailed, RankSilent, UserError
from mpirl.specs import ArraySpec, Specs
from mpirl.testing_emulators import Play, check_picture, check_same, make_batch
from mpirl.testing_transport import CLAIMS
from mpirl.transport.base import Group

if TYPE_CHECKING:  # a machine without torch can check its emulators
    from mpirl.algorithms.base import Algorithm
    from mpirl.models.base import Model


class CountingEmulator(Emulator):
    """Observations int64 [2]: steps of this episode, and steps of this emulator since it was made.

    A lost or doubled step shows as a gap in either. An episode takes 1 to 2 * episode_length - 1 steps, as the seed says;
    odd lengths end in termination, even ones in truncation. Every reward is 1. (The second count outlives the episode,
    so that what follows a seed depends on the past: good for counting, not allowed in training.)
    """

    def __init__(self, episode_length: int = 10):
        if episode_length < 1:
            raise UserError(f"episode_length={episode_length}: an episode takes at least 1 step")
        self.episode_length = episode_length
        self.specs = Specs({"observation": ArraySpec((2,), "int64", low=0)}, ArraySpec((), "int64", num_values=2))
        self._random = np.random.default_rng(0)
        self._step = self._total = self._end = 0

    def reset(self, seed: int | None) -> np.ndarray:
        if seed is not None:
            self._random = np.random.default_rng(seed)
        self._end = int(self._random.integers(1, 2 * self.episode_length))
        self._step = 0
        return self._observation()

    def step(self, action: np.ndarray) -> Transition:
        self._step += 1
        self._total += 1
        ended, is_odd = self._step == self._end, self._end % 2 == 1
        return Transition(self._observation(), 1.0, terminated=ended and is_odd, truncated=ended and not is_odd)

    def _observation(self) -> np.ndarray:
        return np.array([self._step, self._total], np.int64)


def check_emulator(make: Callable[[], Any], *, episodes: int = 2, max_steps: int = 20_000) -> None:
    """Check an emulator, or a batch of them, by playing random actions.

    make: makes an Emulator (or what has its methods), or an EmulatorBatch of as many lanes as it likes; called often.
    episodes: played from every seed. max_steps: by when an episode must have ended.

    Claims: what is returned honours the specs; rewards are finite; after LAST comes FIRST with reward 0 and discount 1,
    whatever the action; from a seed on, a lane is a function of its actions, in any lane and after any history.
    """
    try:
        batch, other = make_batch(make), make_batch(make)
        takes: dict[int, list] = {}
        Play(batch, takes, streams=2, episodes=episodes, shift=0, max_steps=max_steps).run()
        Play(other, takes, streams=1, episodes=episodes, shift=1, max_steps=max_steps).run()
        Play(batch, takes, streams=1, episodes=1, shift=2, max_steps=max_steps).run()  # starts over in mid-episode
        check_same(takes)
        check_picture(batch.render(0))
        batch.close()
        other.close()
    except UserError as error:
        raise AssertionError(str(error)) from error


def check_model(model: Model, specs: Specs) -> None:
    """Check a model: shapes and dtypes, that the rows of its input do not mix, its action distribution, and its forms for acting."""
    from mpirl import testing_models

    testing_models.check_model(model, specs)


def check_algorithm(make: Callable[[Model, Specs], Algorithm], model: Model, specs: Specs) -> None:
    """Check an algorithm on synthetic batches. It learns on copies of `model`.

    Claims: `learn` changes the parameters, the same way each time, and returns finite statistics with "learned" the
    number of true steps; what stands on a seam changes nothing; `state_dict` restores everything through
    torch.load(weights_only=True).
    """
    from mpirl import testing_algorithms

    testing_algorithms.check_algorithm(make, model, specs)


def check_transport(run: Callable[[int, Callable[[Group], None]], Any], sizes: Sequence[int] = (1, 2, 3, 5)) -> None:
    """Check a transport: broadcasts, gathers of unequal and zero lanes, exchanges and splits.

    run(size, claim) calls claim(group) on every rank of a group of `size` ranks. Where the launcher has made the ranks:
    check_transport(lambda size, claim: claim(world), sizes=[world.size]) on each of them.
    """
    for size in sizes:
        for claim in CLAIMS:
            try:
                run(size, claim)
            except (AssertionError, RankFailed, RankSilent) as error:
                raise AssertionError(f"{claim.__name__} does not hold with {size} ranks: {error}") from error
