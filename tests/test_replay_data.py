"""`python -m mpirl.replay RUN minari NAME` and `NEW import SOURCE`."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
from archived import CATCH, record

from mpirl import replay
from mpirl.archive.reader import Segment, segments


@pytest.fixture
def call(capsys, monkeypatch, tmp_path):
    """Run the program: (exit code, stdout, stderr)."""

    def called(*arguments: object) -> tuple[int, str, str]:
        code = replay.main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    for name in [name for name in os.environ if name.startswith(("OMPI_", "PMI_", "PMIX_", "SLURM_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    return called


@pytest.fixture
def run(tmp_path) -> Path:
    return record(tmp_path / "run", CATCH)


def test_minari_opens_what_the_command_made(run, call):
    minari = pytest.importorskip("minari")
    code, out, _ = call(run, "minari", "mpirl/catch-v0", "--author", "Ada", "--code-permalink", "https://example.org/x")
    assert code == 0 and 'minari.load_dataset("mpirl/catch-v0") opens it' in out and "keep these" in out
    dataset = minari.load_dataset("mpirl/catch-v0")
    assert dataset.storage.metadata["author"] == {"Ada"}
    assert f"episodes {len(dataset)}, steps {dataset.total_steps}, as views" in out


def test_a_copy_goes_where_it_is_told(run, call, tmp_path):
    code, out, _ = call(run, "minari", "catch-v0", "--copy", "--root", tmp_path / "there")
    assert code == 0 and "as copies" in out and f"MINARI_DATASETS_PATH={tmp_path / 'there'}" in out
    assert (tmp_path / "there/catch-v0/data/main_data.hdf5").exists() and not (tmp_path / "datasets").exists()


def test_mistakes_are_one_line(run, call, tmp_path):
    assert call(run, "minari", "catch-v0")[0] == 0
    for arguments, words in [
        ((tmp_path / "nowhere", "minari", "catch-v0"), "no run at"),
        ((run, "minari", "catch"), "write catch-v0"),
        ((run, "minari", "catch-v0"), "--overwrite"),
        ((run, "import", "catch-v0"), "exists: name a new folder"),
        ((tmp_path / "new", "import", "other-v0"), "neither a Minari dataset"),
    ]:
        code, _, error = call(*arguments)
        assert code == 2 and words in error and error.count("\n") == 1
    assert call(run, "minari", "catch-v0", "--overwrite")[0] == 0


def test_an_imported_archive_can_be_listed(run, call, tmp_path):
    assert call(run, "minari", "catch-v0")[0] == 0
    code, out, _ = call(tmp_path / "new", "import", "catch-v0")
    assert code == 0 and out.startswith(f"{tmp_path / 'new'}: ")
    code, listed, _ = call(tmp_path / "new", "list")
    assert code == 0 and len(listed.splitlines()) - 1 == int(out.split("episodes ")[1].split(",")[0])


def test_a_flat_file_takes_the_bounds_of_its_environment(call, tmp_path):
    pytest.importorskip("gymnasium")
    with h5py.File(tmp_path / "flat.hdf5", "w") as file:
        file["observations"], file["actions"] = np.zeros((6, 3), "float32"), np.zeros((6, 1), "float32")
        file["rewards"], file["terminals"], file["timeouts"] = np.ones(6), np.zeros(6, bool), np.arange(6) == 5
    code, out, _ = call(tmp_path / "new", "import", tmp_path / "flat.hdf5", "--env", "Pendulum-v1")
    assert code == 0 and "episodes 1, steps 5" in out and "is not in the file: 1" in out
    with Segment(segments(tmp_path / "new")[0]) as segment:
        assert segment.layout.specs.action.low == -2 and segment.layout.specs.observation["observation"].high == (1, 1, 8)
    code, _, error = call(tmp_path / "other", "import", tmp_path / "flat.hdf5", "--env", "CartPole-v1")
    assert code == 2 and "is not of this emulator" in error
