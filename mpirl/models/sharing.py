"""Minibatches shared among threads: each takes its rows through the layers and back on its own.

Torch's own threads share every single operation instead, and wait for each other in each one. On an idle machine that costs
little, but where a core has other work to do as well, it costs most of the time: while they wait, oneDNN's threads spin.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache, partial, reduce
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

SMALLEST = 64
"""Rows of a share; below that, what an operation costs by itself begins to show."""

_most = 0  # shares; 0: as many as torch's threads

Result = TypeVar("Result")


def use_threads(number: int, busy: int = 0) -> None:
    """Learn with so many threads while other processes keep `busy` of their cores at work, for a while at least: a minibatch is
    shared among all threads, a single operation among those with cores left, but half of them.

    An operation ends when the last of its threads does, which on a busy core has to wait; but once the others have done their
    work, a learner with one thread would have one core at work.
    """
    global _most
    _most = number
    torch.set_num_threads(max(1, number - min(busy, number // 2)))


def in_shares(layers: Callable[[slice], Tensor], num_rows: int, parameters: Sequence[Tensor]) -> Tensor:
    """layers(rows) for all rows, [num_rows, ...]; shared among threads where a gradient is wanted on the CPU.

    layers: a pure function of these parameters that gives each row a result of its own.
    """
    learned = [parameter for parameter in parameters if parameter.requires_grad and parameter.device.type == "cpu"]
    if not learned or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return layers(slice(0, num_rows))
    count = min(_most or torch.get_num_threads(), num_rows // SMALLEST)
    if count < 2:
        return layers(slice(0, num_rows))
    bounds = [num_rows * part // count for part in range(count + 1)]
    return Shared.apply(layers, [slice(*pair) for pair in zip(bounds, bounds[1:])], *learned)


class Shared(torch.autograd.Function):
    """Each share has a graph of its own; their gradients are summed in order, so that results do not depend on timing."""

    @staticmethod
    def forward(ctx: Any, layers: Callable[[slice], Tensor], shares: list[slice], *parameters: Tensor) -> Tensor:
        ctx.parameters = parameters
        ctx.outputs = side_by_side([partial(with_graph, layers, rows) for rows in shares])
        return torch.cat([output.detach() for output in ctx.outputs])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        parts = gradient.split([len(output) for output in ctx.outputs])
        with torch.enable_grad():
            ends = [Led.apply(output, part) for output, part in zip(ctx.outputs, parts)]
        gradients = side_by_side([partial(torch.autograd.grad, end, ctx.parameters) for end in ends])
        ctx.outputs = None
        return None, None, *(reduce(torch.add, column) for column in zip(*gradients))


class Led(torch.autograd.Function):
    """A number whose gradient to `output` is this one. Handed to torch.autograd.grad instead, gradients have their shapes compared
    by a module that loads sympy: 0.4 s of the first update.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, gradient: Tensor) -> Tensor:
        ctx.gradient = gradient
        return output.new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, None]:
        return ctx.gradient, None


@torch.enable_grad()
def with_graph(layers: Callable[[slice], Tensor], rows: slice) -> Tensor:
    return layers(rows)


def side_by_side(tasks: Sequence[Callable[[], Result]]) -> list[Result]:
    """The tasks' results, each from a thread with an equal part of the threads and the caller's autocast."""
    threads = torch.get_num_threads()
    run = partial(in_thread, (_most or threads) // len(tasks), torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"))
    others = [helpers(len(tasks) - 1, os.getpid()).submit(run, task) for task in tasks[1:]]
    try:
        return [run(tasks[0]), *(other.result() for other in others)]
    finally:
        wait(others)
        torch.set_num_threads(threads)


@lru_cache(maxsize=1)
def helpers(count: int, process: int) -> ThreadPoolExecutor:
    """Threads that stay: new ones for each minibatch cost 5 % of an update. A forked process has its own."""
    return ThreadPoolExecutor(count, "shares")


def in_thread(num_threads: int, autocast: bool, dtype: torch.dtype, task: Callable[[], Result]) -> Result:
    torch.set_num_threads(num_threads)  # of operations in this thread
    with torch.autocast("cpu", dtype, enabled=autocast):
        return task()
