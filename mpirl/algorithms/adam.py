"""Adam as torch has it, without what its wrappers load: they import torch.compile's machinery, about a second of a core."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def unwrapped(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method inside torch's wrapper, which only matters to an optimizer that is itself compiled."""
    return getattr(method, "__wrapped__", method)


class Adam(torch.optim.Adam):
    """The same function of the same settings and state, bit for bit; not for use inside torch.compile."""

    add_param_group = unwrapped(torch.optim.Adam.add_param_group)
    zero_grad = unwrapped(torch.optim.Adam.zero_grad)
    state_dict = unwrapped(torch.optim.Adam.state_dict)
    load_state_dict = unwrapped(torch.optim.Adam.load_state_dict)
    step = torch.no_grad()(unwrapped(torch.optim.Adam.step))
