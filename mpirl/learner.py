"""The learner, rank 0's side: takes batches in, learns from them, publishes weights, and keeps the accounts."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mpirl import seeds
from mpirl.accounts import Accounts
from mpirl.algorithms.base import Algorithm, Batch
from mpirl.archive.base import ArchiveWriter
from mpirl.device import DeviceBatch, PublishedWeights
from mpirl.episodes import EpisodeTracker
from mpirl.observers.base import Report
from mpirl.schedule import Command
from mpirl.timing import IterationTimes
from mpirl.trajectory import Trajectory, is_step

FORMAT = 1


class Learner:
    """Owns the algorithm and the batches. `iteration` and `steps` count what was taken, `version` the updates.

    weights: what is broadcast. batches: one, or two that take turns, so that one is filled while the other is learned from; of
    all workers' lanes. begin is called before learning (it sets this rank's threads).
    """

    def __init__(
        self,
        algorithm: Algorithm,
        weights: PublishedWeights,
        batches: Sequence[DeviceBatch],
        archive: ArchiveWriter | None,
        episodes: EpisodeTracker,
        run_seed: int,
        total_steps: int,
        begin: Callable[[], None] = lambda: None,
    ):
        self.algorithm, self.archive = algorithm, archive
        self.episodes, self.run_seed, self.total_steps = episodes, run_seed, total_steps
        self.accounts = Accounts()
        self.times = IterationTimes()
        self.iteration = self.version = self.steps = 0
        self.elapsed = 0.0  # seconds of training, over all restarts
        self._weights, self._begin = weights, begin
        self._batches = deque(batches)  # the one taken last, and the one to be filled
        self._taken: Command | None = None  # of the batch that is to be learned from
        self._before: dict[str, Any] = {}  # what a checkpoint holds of the counts before that batch
        self._collected_before = 0
        self._steps_before, self._started = 0, time.perf_counter()
        self._finished_rows: list[dict[str, Any]] = []
        self._stats: dict[str, float] = {}

    @property
    def batch(self) -> Trajectory:
        """What was taken last."""
        return self._batches[0].host

    @property
    def staging(self) -> Trajectory:
        """What the gather fills."""
        return self._batches[-1].host

    @property
    def behind(self) -> int:
        """Batches taken and not learned from."""
        return int(self._taken is not None)

    def take(self, command: Command) -> None:
        """Take the gathered batch into the accounts, the episodes and the archive."""
        assert self._taken is None, "a batch would be lost"
        self._before = self._counts()
        self._batches.rotate(1)
        self._taken, self.iteration = command, command.iteration
        gathered = int(np.count_nonzero(is_step(self.batch["step_type"])))
        self.accounts.gathered += gathered
        self.accounts.collected = self._collected_before + int(self.batch["collected"].sum())
        self.steps += gathered
        self._finished_rows = self.episodes.update(command.iteration, self.batch)
        if self.archive:
            reason = self.archive.write(command.iteration, self.version, self.batch, self._finished_rows)
            self.accounts.archive(gathered, reason)
            self.accounts.deleted = dict(self.archive.deleted)
        self.times.lap("archive")

    def learn(self) -> bool:
        """One update of the algorithm from the batch taken; whether there was one.

        Raises FloatingPointError when training has diverged.
        """
        if self._taken is None:
            return False
        self._begin()
        batch = self._batches[0].load(
            progress=min(1.0, self.accounts.learned / self.total_steps),
            random=seeds.generator(self.run_seed, seeds.LEARNING, self._taken.iteration),
            lag=self.version - self._taken.version,
        )
        self._stats = dict(self.algorithm.learn(batch))
        learned = int(self._stats.pop("learned"))
        gathered = int(np.count_nonzero(is_step(self.batch["step_type"])))
        self.accounts.learned += learned
        self.accounts.drop(gathered - learned, "not used by the algorithm")
        self.accounts.check(archived=self.archive is not None)
        self._weights.publish()
        self.version += 1
        self._taken = None
        self.times.lap("learn")
        return True

    def refill(self, archived: Iterable[tuple[int, Trajectory]]) -> int:
        """Have the algorithm take the latest iterations in again, (number, batch) oldest first; return their true steps."""
        num_steps = 0

        def batches() -> Iterator[Batch]:
            nonlocal num_steps
            for iteration, trajectory in archived:
                random = seeds.generator(self.run_seed, seeds.LEARNING, iteration)
                yield self._batches[0].of(trajectory).load(0.0, random)
                num_steps += int(np.count_nonzero(is_step(trajectory["step_type"])))

        self.algorithm.refill(batches())
        return num_steps

    def report(self, command: Command, evaluation: Mapping[str, float] | None) -> Report:
        """What the observers see of the iteration; ends its times. The statistics are those of the latest update."""
        rows, self._finished_rows = self._finished_rows, []
        seconds = self.times.close()
        since = time.perf_counter() - self._started
        new_steps = self.steps - self._steps_before
        return Report(
            iteration=command.iteration,
            steps=self.steps,
            total_steps=self.total_steps,
            version=self.version,
            lag=command.lag,
            seconds=seconds,
            elapsed=self.elapsed + since,
            fps=new_steps / max(since, 1e-9),
            stats=self._stats,
            episodes=rows,
            num_episodes=self.episodes.finished,
            mean_return=self.episodes.mean_return,
            mean_length=self.episodes.mean_length,
            accounts=self.accounts,
            evaluation=evaluation,
        )

    def close(self) -> None:
        """Bring the archive to disk."""
        if self.archive:
            self.archive.close()

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs; tensors and plain values only. The optimizer's tensors may be its own.

        A batch that has been taken and not learned from is not in it: a resumed run collects it again.
        """
        return {
            "format": FORMAT,
            "weights": self._weights.flat.vector.detach().cpu().clone(),
            "algorithm": self.algorithm.state_dict(),
            "version": self.version,
            "elapsed": self.elapsed + time.perf_counter() - self._started,
            **(self._before if self.behind else self._counts()),
        }

    def _counts(self) -> dict[str, Any]:
        """What taking a batch changes."""
        return {
            "episodes": self.episodes.state_dict(),
            "accounts": self.accounts.state_dict(),
            "iteration": self.iteration,
            "steps": self.steps,
            "mean_return": self.episodes.mean_return,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._weights.load(state["weights"])
        self.algorithm.load_state_dict(state["algorithm"])
        self.episodes.load_state_dict(state["episodes"])
        self.accounts = Accounts.from_state(state["accounts"])
        self._collected_before = self.accounts.collected
        self.iteration, self.version, self.steps = state["iteration"], state["version"], state["steps"]
        self._steps_before, self.elapsed = self.steps, state["elapsed"]
