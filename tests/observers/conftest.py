"""Reports of made-up iterations, for observers to see."""

import pytest

from mpirl.accounts import Accounts
from mpirl.observers.base import Report

SECONDS = {"broadcast": 0.25, "collect": 1.5, "gather": 0.125, "archive": 0.0625, "learn": 2.0, "other": 0.5}


@pytest.fixture
def make_report():
    """make_report(iteration, **changes): iterations of 100 steps."""

    def make(iteration=1, **changes):
        steps = 100 * iteration
        report = {
            "iteration": iteration,
            "steps": steps,
            "total_steps": 1000,
            "version": iteration,
            "lag": 0,
            "seconds": {**SECONDS, "iteration": sum(SECONDS.values())},
            "elapsed": 4.4375 * iteration,
            "fps": 50.0,
            "stats": {"value_loss": 0.5, "approx_kl": 0.01},
            "episodes": [],
            "num_episodes": 3 * iteration,
            "mean_return": 1.25 * iteration,
            "mean_length": 9.0,
            "accounts": Accounts(steps, steps, steps - 10, steps, {"too old": 10}),
            "evaluation": None,
        }
        return Report(**{**report, **changes})

    return make
