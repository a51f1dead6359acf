"""CentralPolicy: rank 0 decides. A worker sends the newest frames of its lanes at every step and gets the actions back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mpirl.errors import UserError
from mpirl.policies.base import Decision, Policy
from mpirl.specs import ArraySpec
from mpirl.transport.base import Group
from mpirl.trajectory import Layout


class Central:
    """The settings of policy=central: the device of rank 0 acts for all workers.

    groups: into how many each worker's lanes are split; while rank 0 decides for one, the emulators of another are stepped.
    """

    is_central = True

    def __init__(self, groups: int = 2):
        if groups < 1:
            raise UserError(f"policy.groups={groups}: write 1 or more; with 2, emulation and inference overlap")
        self.groups = groups

    def split(self, lanes: Sequence[int]) -> list[list[int]]:
        """Lanes by slot and rank, from the lanes of every rank. What is over goes to different slots on different workers."""
        share = lambda slot, rank, count: count // self.groups + ((slot + 1 - rank) % self.groups < count % self.groups)
        return [[share(slot, rank, count) for rank, count in enumerate(lanes)] for slot in range(self.groups)]


def question_dtype(layout: Layout, noise_size: int) -> np.dtype:
    """What a lane sends at a step: its newest frame, never a stack, and the noise of its action."""
    specs = {"step_type": ArraySpec((), "uint8"), "noise": ArraySpec((noise_size,), "float32")}
    return record(layout.specs.observation | specs)


def answer_dtype(layout: Layout) -> np.dtype:
    """What a lane gets back."""
    specs = {"log_prob": ArraySpec((), "float32"), "core": ArraySpec((layout.core,), "float32")}
    return record({"action": layout.specs.action, **specs, **layout.extras})


def record(specs: Mapping[str, ArraySpec]) -> np.dtype:
    """One lane's values of these names, each aligned, so that both numpy and torch can look at them in place."""
    return np.dtype([(name, spec.dtype, spec.shape) for name, spec in specs.items()], align=True)


class Messages:
    """One rank's step-wise messages, by slot: of its own lanes on a worker, of all lanes on rank 0.

    lanes: by slot and rank. questions, answers: uint8 [lanes, bytes] of the dtypes.
    """

    def __init__(
        self,
        group: Group,
        lanes: Sequence[Sequence[int]],
        question: np.dtype,
        answer: np.dtype,
        allocate: Callable[[tuple[int, ...], np.dtype], np.ndarray] = np.zeros,
    ):
        """* Of all ranks."""
        self.counts = [counts[group.rank] if group.rank else sum(counts) for counts in lanes]
        self.question, self.answer = question, answer
        self.questions = [allocate((count, question.itemsize), np.dtype(np.uint8)) for count in self.counts]
        self.answers = [allocate((count, answer.itemsize), np.dtype(np.uint8)) for count in self.counts]
        self.steps = group.steps(self.questions, self.answers, lanes)

    @property
    def slots(self) -> list[int]:
        """Those with lanes."""
        return [slot for slot, count in enumerate(self.counts) if count]


class CentralPolicy(Policy):
    """Acts for a worker's lanes of one slot, by asking rank 0."""

    def __init__(self, messages: Messages, slot: int, frame_stack: int):
        self._steps, self._slot, self._frame_stack = messages.steps, slot, frame_stack
        self._question = messages.questions[slot].view(messages.question)[:, 0]  # [N], of the dtype's fields
        self._answer = messages.answers[slot].view(messages.answer)[:, 0]
        self._extras = [name for name in messages.answer.names or () if name not in ("action", "log_prob", "core")]

    def act(
        self, observation: Mapping[str, np.ndarray], step_type: np.ndarray, core: np.ndarray, noise: np.ndarray | None
    ) -> Decision:
        self.ask(observation, step_type, core, noise)
        return self.answer()

    def ask(
        self, observation: Mapping[str, np.ndarray], step_type: np.ndarray, core: np.ndarray, noise: np.ndarray | None
    ) -> None:
        """Send what rank 0 does not know: it keeps the stacks and the recurrent state itself."""
        for name, array in observation.items():
            self._question[name] = array if self._frame_stack == 1 else array[:, -1]
        self._question["step_type"] = step_type
        if noise is not None:
            self._question["noise"] = noise
        self._steps.send(self._slot)

    def answer(self) -> Decision:
        self._steps.receive(self._slot)
        answer = self._answer
        return Decision(answer["action"], answer["log_prob"], answer["core"].copy(), {n: answer[n] for n in self._extras})
