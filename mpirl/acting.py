"""Rank 0's side of policy=central: at every step it decides for the lanes of all workers, on its own device."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from mpirl.policies.central import Messages
from mpirl.policies.local import LocalPolicy
from mpirl.schedule import Command
from mpirl.specs import StepType
from mpirl.trajectory import Trajectory


class Rows:
    """Host rows of a structured dtype, uint8 [N, bytes], and the same on the device, where they are tensors by field."""

    def __init__(self, host: np.ndarray, dtype: np.dtype, device: torch.device):
        self.host = torch.from_numpy(host)
        self._is_on_host = device.type == "cpu"
        self._rows = self.host if self._is_on_host else self.host.to(device)
        fields = {name: (dtype.fields[name][0], dtype.fields[name][1]) for name in dtype.names or ()}
        self._fields = {name: (kind.base, kind.shape, slice(at, at + kind.itemsize)) for name, (kind, at) in fields.items()}

    def load(self) -> dict[str, Tensor]:
        """The fields {name: [N, ...]} of what is on the host now; from a GPU's side, in time with its other work."""
        if not self._is_on_host:
            self._rows.copy_(self.host, non_blocking=True)
        return {name: self._field(*field) for name, field in self._fields.items()}

    def store(self, values: Mapping[str, Tensor]) -> None:
        """Write the fields; they have come to the host when the device has done what it was given."""
        for name, (kind, _, place) in self._fields.items():
            value = values[name].to(getattr(torch, kind.name)).reshape(len(self._rows), -1).contiguous()
            self._rows[:, place] = value.view(torch.uint8)
        if not self._is_on_host:
            self.host.copy_(self._rows, non_blocking=True)

    def _field(self, kind: np.dtype, shape: tuple[int, ...], place: slice) -> Tensor:
        values = self._rows[:, place].contiguous().view(getattr(torch, kind.name))
        return values.view(len(self._rows), *shape)


class Memory:
    """What a slot's N lanes have shown so far, on the device: stacks {field: [N, k, ...]} if k > 1, recurrent state [N, S]."""

    def __init__(self, frame_stack: int, core: Tensor):
        self.core = core
        self._frame_stack = frame_stack
        self._stacks: dict[str, Tensor] = {}

    def restart(self) -> None:
        """Forget everything; stacks forget by themselves at an episode's FIRST."""
        self.core = torch.zeros_like(self.core)

    def observe(self, frames: Mapping[str, Tensor], step_type: Tensor, is_new: bool) -> Mapping[str, Tensor]:
        """The model's inputs {field: [N, (k,) ...]} with these frames [N, ...] as the newest; no frame of an earlier episode.

        is_new: they were not shown before.
        """
        if self._frame_stack == 1:
            return frames
        for name, frame in frames.items() if is_new else ():
            stack = self._stacks.get(name)
            older = frame.new_zeros(len(frame), self._frame_stack - 1, *frame.shape[1:]) if stack is None else stack[:, 1:]
            is_first = (step_type == StepType.FIRST).view(-1, *[1] * frame.ndim)
            self._stacks[name] = torch.cat([older.masked_fill(is_first, 0), frame.unsqueeze(1)], 1)
        return self._stacks


class Actor:
    """What rank 0 has in a worker's place: no lanes, but answers for all lanes while their workers `collect`.

    policy: on `device`. trajectory: without lanes, of as many steps as theirs. begin is called before a collect (it sets this
    rank's threads). plays_on: as a worker's. patient: whether to sleep while the device computes.
    """

    def __init__(
        self,
        policy: LocalPolicy,
        messages: Messages,
        device: torch.device,
        trajectory: Trajectory,
        plays_on: Callable[[bool], bool],
        begin: Callable[[], None] = lambda: None,
        greedy: bool = False,
        patient: bool = True,
    ):
        self.trajectory, self.plays_on = trajectory, plays_on
        self._policy, self._messages, self._begin, self._greedy = policy, messages, begin, greedy
        self._device = device
        self._questions = [Rows(array, messages.question, device) for array in messages.questions]
        self._answers = [Rows(array, messages.answer, device) for array in messages.answers]
        model = policy.model
        self._memories = [Memory(model.frame_stack, model.initial(count).to(device)) for count in messages.counts]
        self._done = torch.cuda.Event(blocking=patient) if device.type == "cuda" else None
        self._started = False

    @torch.inference_mode()
    def collect(self, command: Command) -> None:
        """* With all workers' `collect`: answer their questions of every step, and that for o_T, which bootstraps."""
        self._begin()
        self._policy.refresh()
        num_steps = self.trajectory.layout.steps
        for t in range(num_steps + 1):
            is_step = t < num_steps
            for slot in self._messages.slots:
                self._messages.steps.receive(slot)
                self._decide(slot, is_new=t > 0 or not self._started, is_step=is_step)
                self._messages.steps.send(slot, reply=is_step)
        self._started = True

    def restart(self) -> None:
        """Forget the lanes: they begin anew, as after the workers' `restart`."""
        self._started = False
        for memory in self._memories:
            memory.restart()

    def close(self) -> None:
        """Give back what the messages hold."""
        self._messages.steps.close()

    def _decide(self, slot: int, is_new: bool, is_step: bool) -> None:
        """Fill the slot's answers; the only wait for the device is the one for them."""
        memory, question = self._memories[slot], self._questions[slot].load()
        step_type, noise = question.pop("step_type"), question.pop("noise")
        inputs = memory.observe(question, step_type, is_new)
        action, log_prob, core, extras = self._policy.decide(inputs, step_type, memory.core, None if self._greedy else noise)
        self._answers[slot].store({"action": action, "log_prob": log_prob, "core": core, **extras})
        if is_step:
            memory.core = core
        if self._done:
            self._done.record(torch.cuda.current_stream(self._device))
            self._done.synchronize()
