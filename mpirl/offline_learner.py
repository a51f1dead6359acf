"""The learner of offline training: takes batches from an archive, learns and validates, and keeps the accounts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from mpirl import seeds
from mpirl.accounts import Accounts
from mpirl.algorithms.base import OfflineAlgorithm
from mpirl.archive.batches import Batches, StreamedBatch
from mpirl.archive.windows import REASONS, Use, Windows, count_uses
from mpirl.checkpoint import Checkpoints
from mpirl.learner import Learner
from mpirl.schedule import Command
from mpirl.trajectory import Layout


@dataclass
class ReadAccounts(Accounts):
    """Steps of archives, once for every epoch that read them. collected: that the archives hold. gathered: that were read,
    or found not worth it. dropped: held out for validation among others."""

    def __str__(self) -> str:
        dropped = ", ".join(f"{steps:,} {reason}" for reason, steps in self.dropped.items()) or "none dropped"
        return f"read {self.gathered:,} of {self.collected:,}, learned {self.learned:,}, {dropped}"


@dataclass(frozen=True)
class Reading:
    """What is read, in what portions: windows per batch, and in the shuffle buffer."""

    windows: Windows
    layout: Layout
    lanes: int
    buffer: int
    epochs: int

    @property
    def total_steps(self) -> int:
        """Steps to learn from, over all epochs."""
        return self.epochs * int(self.windows.totals[Use.TRAINING])


class OfflineLearner(Learner):
    """A learner whose batches come from `reading`. `steps` counts what it has learned from, over all epochs."""

    def __init__(self, reading: Reading, **parts: Any):
        super().__init__(archive=None, total_steps=reading.total_steps, **parts)
        assert isinstance(self.algorithm, OfflineAlgorithm), "checked by take_offline_role"
        self.accounts = ReadAccounts()
        self._reading = reading
        self._reasons = {**REASONS, Use.LEFT_OUT: self.algorithm.left_out}
        self._stream: Batches | None = None
        self._position = (0, 0)  # of the next batch: epoch, number in there
        self._seen = np.zeros(len(Use), np.int64)  # steps of the present epoch so far, by Use
        self._evaluated: np.ndarray | None = None  # weights that the workers evaluate

    def study(self, command: Command) -> None:
        """Validate on a batch's held-out steps and learn from the others; nothing, when all epochs are done."""
        self._evaluated = self._weights.array.copy() if command.evaluate else None
        if self.steps >= self.total_steps:
            return
        self._begin()
        batch = self._next()
        random = seeds.generator(self.run_seed, seeds.LEARNING, command.iteration)
        loaded = self._batches[0].load(min(1.0, self.steps / self.total_steps), random)
        use = loaded.fields["use"][:, :-1]
        validation = self.algorithm.validate(replace(loaded, chosen=use == int(Use.VALIDATION)))
        self._stats = dict(self.algorithm.learn(replace(loaded, chosen=use == int(Use.TRAINING))))
        self._account(batch, int(self._stats.pop("learned")))
        self._stats |= {f"valid/{name}": value for name, value in validation.items()}
        self._weights.publish()
        self.iteration, self.version = command.iteration, self.version + 1
        self.times.lap("learn")

    def keep_best(self, evaluation: Mapping[str, float] | None, checkpoints: Checkpoints) -> None:
        """If the evaluated weights are the best so far, keep them in best.pt."""
        if evaluation and self._evaluated is not None:
            best = {"weights": torch.from_numpy(self._evaluated), "mean_return": evaluation["mean_reward"]}
            checkpoints.keep_best({**self.state_dict(), **best})
            self.times.lap("save")

    def close(self) -> None:
        """Stop reading."""
        if self._stream:
            self._stream.close()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "position": list(self._position), "seen": self._seen.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.accounts = ReadAccounts.from_state(state["accounts"])
        self._position, self._seen = tuple(state["position"]), np.array(state["seen"], np.int64)

    def _next(self) -> StreamedBatch:
        """Fill `batch` with the next one of the stream."""
        reading = self._reading
        self._stream = self._stream or Batches(
            reading.windows, reading.layout, reading.lanes, reading.buffer, self.run_seed, *self._position
        )
        streamed = self._stream.take()
        for name, array in streamed.arrays.items():
            np.copyto(self.batch[name], array)
        self.times.lap("read")
        return streamed

    def _account(self, batch: StreamedBatch, learned: int) -> None:
        """Enter a batch; at an epoch's end also what was not worth reading, and then all of the archives must be there."""
        windows, is_end = self._reading.windows, batch.number + 1 == self._stream.per_epoch
        counts = count_uses(self.batch["use"][:, :-1]) + (windows.unread if is_end else 0)
        self._seen += counts
        for use, reason in self._reasons.items():
            self.accounts.drop(int(counts[use]), reason)
        self.accounts.drop(int(counts[Use.TRAINING]) - learned, "not used by the algorithm")
        self.accounts.learned += learned
        self.accounts.gathered += int(counts.sum())
        self.accounts.collected = self.accounts.gathered
        self.steps += int(counts[Use.TRAINING])
        self._stats["epoch"] = batch.epoch + (batch.number + 1) / self._stream.per_epoch
        self._position = (batch.epoch + 1, 0) if is_end else (batch.epoch, batch.number + 1)
        if is_end:
            if not np.array_equal(self._seen, windows.totals):
                raise RuntimeError(f"steps were lost or doubled in epoch {batch.epoch}: {self._seen} of {windows.totals}")
            self._seen[:] = 0
        self.accounts.check(archived=False)
