"""One lab for all tests of this folder; after each test it is as new."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from lab import Lab
from needs import why_no_mpich, why_not


def need(reason: str) -> None:
    """Skips the test when there is a reason why it cannot run; in continuous integration (CI is set) it fails instead."""
    if reason:
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)


@pytest.fixture(scope="session")
def built_lab() -> Iterator[Lab]:
    need(why_not())
    with Lab() as lab:
        yield lab


@pytest.fixture
def lab(built_lab: Lab) -> Iterator[Lab]:
    """Five hosts, gpu0 and cpu1 to cpu4, with Slurm."""
    yield built_lab
    built_lab.reset()


@pytest.fixture
def mpich(lab: Lab) -> dict[str, str]:
    """The variables with which `python`, `mpirun` and `srun --mpi=pmi2` in the lab are MPICH's."""
    need(why_no_mpich())
    return lab.environment("mpich")
