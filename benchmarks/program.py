"""Starts mpirl for a measurement, as its users do."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def launcher(ranks: int) -> list[str]:
    """mpirun of this Python's environment, or else of the path, for ranks that may outnumber the cores."""
    beside = Path(sys.executable).parent / "mpirun"
    return [str(beside if beside.exists() else "mpirun"), "-np", str(ranks), "--map-by", ":OVERSUBSCRIBE", "--bind-to", "none"]


def environment() -> dict[str, str]:
    """This one, in which root may call mpirun, and configs may name parts in benchmarks/."""
    folders = [str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return {**os.environ, **root, "PYTHONPATH": ":".join(filter(None, folders))}


def training(ranks: int, *arguments: str) -> list[str]:
    """The command of `python -m mpirl.main` on so many ranks; for ROOT and `environment()`."""
    return [*launcher(ranks), sys.executable, "-m", "mpirl.main", *arguments]


def mpirun(ranks: int, *arguments: str) -> str:
    """Run `python -m mpirl.main` on so many ranks; its output."""
    command = training(ranks, *arguments)
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return done.stdout


@contextmanager
def finished_run(ranks: int, *arguments: str) -> Iterator[Path]:
    """The folder of a run that `mpirun` has done; deleted in the end."""
    with tempfile.TemporaryDirectory(prefix="mpirl-benchmark-") as folder:
        run_dir = Path(folder) / "run"
        mpirun(ranks, *arguments, f"run_dir={run_dir}")
        yield run_dir
