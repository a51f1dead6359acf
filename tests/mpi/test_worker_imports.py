"""Workers under MPI do without what rank 0 alone needs."""

from __future__ import annotations

from pathlib import Path

from launch import environment, mpirun

FORBID = """
import os, sys
if os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("PMI_RANK")) in ("1", "2"):
    sys.modules.update(dict.fromkeys(("hydra", "omegaconf", "h5py", "tensorboard", "gymnasium", "torch._dynamo", "sympy")))
"""


def test_workers_train_where_hydra_h5py_and_tensorboard_are_missing(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(FORBID)
    path = {"PYTHONPATH": f"{tmp_path}:{environment()['PYTHONPATH']}"}
    done = mpirun(3, ["-m", "mpirl.main", "emulator=catch", "total_steps=2000", f"run_dir={tmp_path}/run"], 120, path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "COMPLETED").exists()
