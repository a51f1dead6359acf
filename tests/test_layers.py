"""The layers hold, and what checks them notices when they do not."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def lint(root: Path) -> subprocess.CompletedProcess:
    """Check the contracts of root/setup.cfg on the package in `root`."""
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as main; main()"]
    environment = os.environ | {"PYTHONPATH": str(root), "COLUMNS": "200"}
    command += ["--config", "setup.cfg", "--no-cache"]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package, to plant violations in."""
    shutil.copytree(ROOT / "mpirl", tmp_path / "mpirl", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "setup.cfg", tmp_path)
    return tmp_path


def test_every_contract_is_kept():
    result = lint(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout


@pytest.mark.parametrize(
    ("module", "planted", "broken"),
    [
        ("specs.py", "import mpirl.emulators.catch", "Arrows point down only"),
        ("emulators/catch.py", "import mpirl.transport.threads", "Arrows point down only"),
        ("emulators/base.py", "import mpirl.emulators.catch", "A contract does not know what honours it"),
        ("emulators/base.py", "import mpirl.worker", "Arrows point down only"),
        ("specs.py", "import mpirl.models.base", "The contracts in base.py"),
        ("trajectory.py", "import torch", "needs no torch"),
        ("emulators/lanes.py", "def f():\n    import mpirl.weights", "needs no torch"),
        ("worker.py", "import mpi4py.MPI", "mpi4py"),
        ("learner.py", "import h5py", "h5py"),
        ("role.py", "from omegaconf import OmegaConf", "hydra"),
        ("loop.py", "import tensorboard", "TensorBoard"),
        ("emulators/catch.py", "import gymnasium", "gymnasium"),
        ("strange.py", "", "Arrows point down only"),  # a module that no layer names
    ],
)
def test_a_planted_violation_is_noticed(copy: Path, module: str, planted: str, broken: str):
    with open(copy / "mpirl" / module, "a") as file:
        file.write(f"\n{planted}\n")
    result = lint(copy)
    assert result.returncode != 0
    assert any(broken in line and "BROKEN" in line for line in result.stdout.splitlines()), result.stdout
