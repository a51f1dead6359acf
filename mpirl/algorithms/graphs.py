"""Gradient steps on a GPU as CUDA graphs: recorded once, then launched whole.

A step is more than a hundred kernels of a few microseconds, which Python takes longer to start than the GPU to run.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, Union

import torch
from torch import Tensor

WARM_UP = 3
"""Steps before the recording: libraries choose and load what they compute with, the optimizer makes its state."""

MOST_BATCHES = 4
"""Batches in memory of their own (two with lag) for which there are recordings at once."""

Number = Union[float, Tensor]
Outputs = tuple[Tensor, ...]
Step = Callable[[Sequence[Tensor], Sequence[Number], Tensor], Outputs]
"""(columns [M, ...], numbers, index int64 [B]) to statistics [S] and anything else, after one step of the optimizer."""


class Recorder(Protocol):
    """What records: `aside` runs a step as `record` would meet it; `record` gives its outputs and what fills them anew."""

    def aside(self, step: Callable[[], Outputs]) -> Outputs: ...

    def record(self, step: Callable[[], Outputs]) -> tuple[Outputs, Callable[[], None]]: ...


class CudaGraphs:
    """Graphs that share their memory, since one runs at a time. `record` raises RuntimeError for a step that it cannot take."""

    def __init__(self, device: torch.device):
        self._device = device
        self._stream, self._pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    def aside(self, step: Callable[[], Outputs]) -> Outputs:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            found = step()
        current.wait_stream(self._stream)
        return found

    def record(self, step: Callable[[], Outputs]) -> tuple[Outputs, Callable[[], None]]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device):
            current = torch.cuda.current_stream()
            try:  # other threads of rank 0 may use the driver meanwhile
                with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                    outputs = step()
            finally:
                torch.cuda.set_stream(current)  # which a capture that fails leaves behind
        return outputs, graph.replay


class Recording(NamedTuple):
    """index: where the next minibatch is written."""

    index: Tensor
    outputs: Outputs
    replay: Callable[[], None]


class Held:
    """What the recording of one batch reads besides the batch: in memory that stays, with room for `most` rows.

    rates: the learning rates of the optimizer's groups.
    """

    def __init__(self, columns: Sequence[Tensor], numbers: int, rates: int, most: int):
        self.columns = [column.new_zeros(most, *column.shape[1:]) for column in columns]
        scalars = lambda count: [columns[0].new_zeros((), dtype=torch.float32) for _ in range(count)]
        self.numbers, self.rates = scalars(numbers), scalars(rates)
        self.recording: Recording | None = None

    def fill(self, columns: Sequence[Tensor], numbers: Sequence[float], rates: Sequence[float]) -> None:
        for held, column in zip(self.columns, columns):
            held[: len(column)].copy_(column)
        for held, number in zip([*self.numbers, *self.rates], [*numbers, *rates]):
            held.fill_(number)


class Graphs:
    """Runs gradient steps of one kind, the first few as they are, then as a recording.

    A recording reads and writes the same memory whenever it runs. So what differs from update to update must be in `columns`,
    `numbers` and the optimizer's learning rate. The first run of a recording is compared with the step itself; where they
    differ, or it cannot be made, a warning says so and steps stay as they are.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, recorder: Callable[[torch.device], Recorder] = CudaGraphs):
        self._optimizer, self._make = optimizer, recorder
        self._recorder: Recorder | None = None
        self._held: dict[Hashable, Held] = {}
        self._warm_up = WARM_UP
        self._is_off = not all(group.get("fused") for group in optimizer.param_groups)  # else its steps wait for the device

    def begin(
        self, step: Step, batch: Hashable, columns: Sequence[Tensor], numbers: Sequence[float], most: int, size: int
    ) -> Callable[[Tensor], Outputs]:
        """What takes the steps of an update: minibatches int64 [B] to the step's outputs.

        batch: the memory that the step reads besides its arguments. columns: [M, ...] with M up to `most`. Minibatches of `size`
        are recorded.
        """
        if self._is_off or (batch not in self._held and len(self._held) == MOST_BATCHES):
            return lambda index: step(columns, numbers, index)
        self._recorder = self._recorder or self._make(columns[0].device)
        rates = [group["lr"] for group in self._optimizer.param_groups]
        if batch not in self._held:
            self._held[batch] = Held(columns, len(numbers), len(rates), most)
        held = self._held[batch]
        held.fill(columns, numbers, rates)
        as_it_is = lambda index: step(held.columns, held.numbers, index)
        return lambda index: self._run(as_it_is, held, index) if len(index) == size else as_it_is(index)

    def _run(self, step: Callable[[Tensor], Outputs], held: Held, index: Tensor) -> Outputs:
        assert self._recorder
        if self._warm_up:
            self._warm_up -= 1
            return self._recorder.aside(lambda: step(index))
        if self._is_off:
            return step(index)
        if held.recording is None:
            return self._first(step, held, index)
        self._launch(held.recording, index)
        return tuple(output.clone() for output in held.recording.outputs)

    def _launch(self, recording: Recording, index: Tensor) -> None:
        recording.index.copy_(index)
        recording.replay()

    def _first(self, step: Callable[[Tensor], Outputs], held: Held, index: Tensor) -> Outputs:
        """Take a step as it is, after a recording of it that must come to the same."""
        try:
            held.recording = self._record(step, held.rates, index)
        except RuntimeError as error:
            self._give_up(f"{type(error).__name__}: {str(error).splitlines()[0]}")
            return step(index)
        state = self._state()
        before = [copies(part) for part in state]
        self._launch(held.recording, index)
        found, row = [copies(part) for part in state], held.recording.outputs[0].clone()
        for part, old in zip(state, before):
            torch._foreach_copy_(part, old)
        outputs = step(index)
        same = all(is_same(*parts) for parts in zip(found, state, before))
        if not same or not torch.allclose(row, outputs[0], rtol=0.02, atol=1e-3):
            self._give_up("it does not come to the same")
        return outputs

    def _record(self, step: Callable[[Tensor], Outputs], rates: Sequence[Tensor], index: Tensor) -> Recording:
        assert self._recorder
        given = index.clone()
        with recordable(self._optimizer, rates):
            outputs, replay = self._recorder.record(lambda: step(given))
        return Recording(given, outputs, replay)

    def _state(self) -> tuple[list[Tensor], list[Tensor]]:
        """What a step changes: the weights, and what the optimizer keeps of them."""
        weights = [weight for group in self._optimizer.param_groups for weight in group["params"]]
        kept = (value for weight in weights for value in self._optimizer.state[weight].values())
        return [weight.detach() for weight in weights], [value for value in kept if isinstance(value, Tensor)]

    def _give_up(self, reason: str) -> None:
        self._is_off = True
        self._held.clear()
        warnings.warn(f"gradient steps run without a CUDA graph, and slower, since recording one failed: {reason}", stacklevel=2)


@contextmanager
def recordable(optimizer: torch.optim.Optimizer, rates: Sequence[Tensor]) -> Iterator[None]:
    """The optimizer with its learning rates in these tensors; a recording would keep a plain number for good."""
    groups: list[dict[str, Any]] = optimizer.param_groups
    before = [(group["lr"], group["capturable"]) for group in groups]
    for group, rate in zip(groups, rates):
        group["lr"], group["capturable"] = rate, True
    try:
        yield
    finally:
        for group, (rate, capturable) in zip(groups, before):
            group["lr"], group["capturable"] = rate, capturable


def copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.clone() for tensor in tensors]


def is_same(found: Sequence[Tensor], expected: Sequence[Tensor], before: Sequence[Tensor]) -> bool:
    """Whether two changes from `before` differ by no more than rounding: a tenth of their length."""
    lengths = [
        torch.linalg.vector_norm(torch.stack(torch._foreach_norm(torch._foreach_sub(list(these), list(those)))))
        for these, those in ((found, expected), (expected, before))
    ]
    return bool(lengths[0] <= 0.1 * lengths[1])
