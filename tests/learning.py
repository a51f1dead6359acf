"""A learner with a fake algorithm, and batches of Catch for it: for tests of the learner and of checkpoints."""

import numpy as np
import torch

from mpirl.algorithms.base import Algorithm
from mpirl.archive.base import ArchiveWriter
from mpirl.device import DeviceBatch, PublishedWeights, autocast_for
from mpirl.emulators.catch import Catch
from mpirl.episodes import EpisodeTracker
from mpirl.learner import Learner
from mpirl.models.mlp import MLP
from mpirl.specs import StepType
from mpirl.trajectory import Layout, Trajectory
from mpirl.weights import FlatWeights

SPECS = Catch(rows=4, columns=3).specs
NUM_LANES, STEPS = 2, 4
STEPS_PER_BATCH = 7  # one seam in lane 1
CPU = torch.device("cpu")


class Fake(Algorithm):
    """Adds 1 to every weight and leaves `unused` steps of a batch."""

    def __init__(self, model, unused=0):
        self.model, self.unused, self.updates, self.batches, self.lags = model, unused, 0, [], []

    def learn(self, batch):
        self.updates += 1
        self.batches.append((batch.progress, batch.random.random()))
        self.lags.append(batch.lag)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(1.0)
        return {"learned": int(batch.is_step.sum()) - self.unused, "loss": 0.5}

    def state_dict(self):
        return {"updates": self.updates, "moments": torch.arange(3.0)}

    def load_state_dict(self, state):
        self.updates = state["updates"]


class Recorder(ArchiveWriter):
    """Remembers what it was given."""

    steps = 0

    def __init__(self):
        self.written, self.events = [], []

    def write(self, iteration, version, batch, episodes):
        self.written.append((iteration, version, batch["reward"].sum(), len(episodes)))

    def flush(self):
        self.events.append("flush")
        return 0

    def close(self):
        self.events.append("close")


def make_learner(unused=0, archive=None, total_steps=70, run_seed=3, lanes=NUM_LANES, num_batches=1):
    torch.manual_seed(0)
    model = MLP(SPECS, hidden=(4,))
    weights = PublishedWeights(FlatWeights(model))
    batches = [Trajectory.allocate(Layout(SPECS, STEPS), lanes) for _ in range(num_batches)]
    return Learner(
        algorithm=Fake(model, unused),
        weights=weights,
        batches=[DeviceBatch(batch, model, CPU, autocast_for(CPU, "fp32")) for batch in batches],
        archive=archive,
        episodes=EpisodeTracker([1] * lanes),
        run_seed=run_seed,
        total_steps=total_steps,
    )


def fill(learner, iteration):
    """The batch of an iteration: lane 0 goes on in its one episode, lane 1 plays an episode of 3
    steps whose return is `iteration`."""
    batch = learner.staging
    batch["step_type"][0] = StepType.MID
    batch["step_type"][0, 0] = StepType.FIRST if iteration == 1 else StepType.MID
    batch["step_type"][1] = [StepType.FIRST, StepType.MID, StepType.MID, StepType.LAST, StepType.FIRST]
    batch["episode"][1] = 2 * iteration - 1 + np.array([0, 0, 0, 0, 2])
    batch["reward"][:] = 0
    batch["reward"][1, 2] = iteration
    batch["discount"][:] = 1
    batch["discount"][1, 2] = 0
    learner.filled = getattr(learner, "filled", 0) + 1  # the workers count from their own start
    batch["collected"][:] = np.array([4, 3]) * learner.filled
