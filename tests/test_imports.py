"""What is dear to load is loaded only where it is needed."""

import subprocess
import sys
from pathlib import Path

import pytest

UNUSED = ("torch._dynamo", "sympy", "matplotlib", "pandas", "gymnasium", "ale_py", "torch.utils.tensorboard", "hdf5plugin")
ONLY_RANK_0 = ("hydra", "omegaconf", "h5py", "tensorboard")
FORBID = "import sys; sys.modules.update(dict.fromkeys({names}))\n"


def loaded(code: str, names: tuple[str, ...]) -> list[str]:
    """Those of the modules that are there after the code."""
    return printed(code + f"\nimport sys\nprint(*(name for name in {names} if name in sys.modules))")


def printed(code: str) -> list[str]:
    """The words that the code prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_a_worker_loads_neither_configs_nor_archives_nor_logs():
    assert loaded("from mpirl.main import load_programs; load_programs(1)", UNUSED + ONLY_RANK_0) == []


def test_rank_0_loads_what_composes_configs_and_writes_archives():
    found = loaded("from mpirl.main import load_programs; load_programs(0)", UNUSED + ONLY_RANK_0)
    assert found == ["hydra", "omegaconf", "h5py"]


def test_a_job_can_be_taken_over_without_hydra():
    assert loaded("from mpirl.job import Job; import pickle; pickle.loads(pickle.dumps(Job({}, '')))", ONLY_RANK_0) == []


@pytest.mark.parametrize("algorithm", ["ppo", "dqn"])
def test_a_run_does_without_what_it_does_not_use(tmp_path, algorithm):
    code = FORBID.format(names=UNUSED) + "from mpirl.main import main; main()"
    settings = ["emulator=catch", f"algorithm={algorithm}", "total_steps=1", f"run_dir={tmp_path}/run"]
    check_completes(code, settings, tmp_path)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads in /proc")
def test_numpy_starts_no_threads_unless_asked(monkeypatch):
    code = "from mpirl import environment; import os, numpy\n"
    code += "print(os.environ['OPENBLAS_NUM_THREADS'], *os.listdir('/proc/self/task'))"
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    number, *threads = printed(code)
    assert number == "1" and len(threads) == 1
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")
    assert printed(code)[0] == "2"


@pytest.mark.atari
def test_convolutions_learned_in_shares_load_no_sympy(tmp_path):
    """Which torch.autograd.grad does, if it is handed a gradient: 0.4 s."""
    code = FORBID.format(names=("torch._dynamo", "sympy")) + "from mpirl.main import main; main()"
    settings = ["emulator=atari_dqn", "emulator.game=pong", "placement.lanes_total=2", "placement.learner_threads=2", "steps=64"]
    settings += ["algorithm.minibatch_size=128", "algorithm.epochs=1", "total_steps=1", f"run_dir={tmp_path}/run"]
    check_completes(code, settings, tmp_path)


def check_completes(code: str, settings: list[str], folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", code, *settings], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (folder / "run" / "COMPLETED").exists()
