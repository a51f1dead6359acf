"""Plots of returns and lengths, with matplotlib."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mpirl.errors import UserError

WINDOW = 100  # episodes that the line is the mean of


def check_installed() -> None:
    """Raise UserError without matplotlib."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UserError(f"plots need matplotlib ({error}): pip install 'mpirl[plot]'") from error


def plot(steps: np.ndarray, series: dict[str, np.ndarray], title: str, path: Path) -> None:
    """Draw each series [num_episodes] over `steps` [num_episodes]: a dot for each episode, and a line of running means."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3 * len(series) + 0.5), layout="constrained")
    axes = figure.subplots(len(series), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (name, values) in zip(axes, series.items()):
        axis.plot(steps, values, ".", markersize=3, alpha=0.3, label="episodes")
        axis.plot(steps, running_mean(values, WINDOW), label=f"mean of the last {WINDOW}")
        axis.set_ylabel(name)
        axis.grid(alpha=0.3)
    axes[0].legend()
    axes[0].set_title(title)
    axes[-1].set_xlabel("steps")
    FigureCanvasAgg(figure).print_png(str(path))


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of every value and the window - 1 before it, or of as many as there are."""
    total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    stop = np.arange(1, len(values) + 1)
    start = np.maximum(0, stop - window)
    return (total[stop] - total[start]) / (stop - start)
