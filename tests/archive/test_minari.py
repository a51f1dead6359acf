"""Datasets made for Minari hold, in Minari's own hands, what the archive holds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from archived import CARTPOLE, CATCH, DQN, PENDULUM, record
from whole import assert_equal, episodes_of

from mpirl.archive.minari import Exported, export_minari
from mpirl.archive.minari_metadata import observation_paths, space_json
from mpirl.archive.reader import segments
from mpirl.archive.writer import SegmentWriter
from mpirl.emulators.base import Emulator, Transition
from mpirl.errors import UserError
from mpirl.specs import ArraySpec, Specs

minari = pytest.importorskip("minari")


class Gadget(Emulator):
    """A nested dict of observations, an extra, and episodes that are cut off after 7 steps."""

    def __init__(self) -> None:
        observation = {
            "observation.camera": ArraySpec((40, 33), "uint8", low=0.0, high=255.0),
            "observation.arm.angle": ArraySpec((2,), "float32", low=(-1.0, float("-inf")), high=(1.0, float("inf"))),
            "observation.arm.grip": ArraySpec((), "int64", num_values=3),
        }
        self.specs = Specs(observation, ArraySpec((2, 2), "float32", low=-1.0, high=1.0), {"heat": ArraySpec((2,), "float32")})

    def reset(self, seed):
        self._random, self._step = np.random.default_rng(seed), 0
        return self._observation()

    def first_extras(self):
        return {"heat": np.float32([0, 1])}

    def step(self, action):
        self._step += 1
        extras = {"heat": np.float32([self._step, 1])}
        return Transition(self._observation(), float(self._random.random()), False, self._step == 7, extras)

    def _observation(self):
        camera = self._random.integers(0, 256, (40, 33)).astype(np.uint8)
        arm = {"angle": self._random.random(2, np.float32), "grip": np.int64(self._random.integers(3))}
        return {"camera": camera, "arm": arm}


GADGET = {"_target_": f"{__name__}.Gadget"}
RUNS = {
    "catch, 3 lanes on 2 ranks": dict(emulator=CATCH, lanes=(2, 1)),
    "dict observation": dict(emulator=GADGET),
    "continuous actions, long episodes": dict(emulator=PENDULUM, iterations=range(1, 28)),
    "cartpole with frames of context": dict(emulator=CARTPOLE, context=3, steps=9, iterations=range(1, 13)),
    "pong": dict(emulator=DQN, iterations=range(1, 7)),
}


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch) -> Path:
    """Where Minari looks for datasets."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    return tmp_path / "datasets"


@pytest.fixture
def archive(tmp_path) -> Path:
    return record(tmp_path / "run", CATCH) / "archive"


def check(archive: Path, name: str) -> None:
    """Minari's dataset has the archive's episodes."""
    expected, dataset = episodes_of(archive), minari.load_dataset(name)
    assert len(dataset) == len(expected) > 0
    assert dataset.total_steps == sum(episode["length"] for episode in expected.values())
    for found, metadata, (id, episode) in zip(
        dataset.iterate_episodes(), dataset.storage.get_episode_metadata(range(len(dataset))), expected.items(), strict=True
    ):
        assert_equal(found.actions, episode["action"])
        assert_equal(found.rewards, episode["reward"])
        assert found.terminations.tolist() == [False] * (episode["length"] - 1) + [episode["reason"] == "terminated"]
        assert found.truncations.tolist() == [False] * (episode["length"] - 1) + [episode["reason"] == "truncated"]
        fields = {name: values for name, values in episode.items() if name.startswith("observation")}
        for path, values in zip(observation_paths(fields).values(), fields.values()):
            inner = found.observations
            for key in path.split("/")[1:]:
                inner = inner[key]
            assert_equal(inner, values)
        assert_equal(found.infos["value"], episode["value"])
        np.testing.assert_array_equal(found.infos["log_prob"], np.append(episode["log_prob"], np.nan))
        row = json.loads(metadata["mpirl"])
        assert row["id"] == id and all(episode[column] == value for column, value in row.items())
        assert metadata["return"] == episode["return"] == found.rewards.sum(dtype=float)
        assert metadata.get("seed", -1) == episode["seed"] and metadata["total_steps"] == len(found.rewards)


@pytest.mark.parametrize("settings", RUNS.values(), ids=RUNS.keys())
def test_minari_reads_what_the_archive_holds(settings, tmp_path):
    if settings["emulator"] is DQN:
        pytest.importorskip("ale_py")
    elif settings["emulator"] in (PENDULUM, CARTPOLE):
        pytest.importorskip("gymnasium")
    run = record(tmp_path / "run", **settings)
    export_minari(run / "archive", "test/views-v0")
    check(run / "archive", "test/views-v0")
    export_minari(run / "archive", "test/copies-v0", copy=True)
    check(run / "archive", "test/copies-v0")
    dataset = minari.load_dataset("test/copies-v0")
    for episode in dataset.sample_episodes(3):
        assert dataset.action_space.shape == episode.actions.shape[1:]
        assert dataset.storage.metadata["jpeg_encoding"] is False


def test_observations_are_in_the_space_that_minari_is_told(tmp_path):
    run = record(tmp_path / "run", GADGET)
    export_minari(run / "archive", "gadget-v0")
    dataset = minari.load_dataset("gadget-v0")
    take = lambda values, t: {key: take(value, t) for key, value in values.items()} if isinstance(values, dict) else values[t]
    for episode in dataset.iterate_episodes():
        assert all(take(episode.observations, t) in dataset.observation_space for t in range(len(episode) + 1))
    assert sorted(dataset.observation_space["arm"]) == ["angle", "grip"]
    assert dataset.observation_space["arm"]["angle"].low.tolist() == [-1, float("-inf")]


def test_episodes_across_a_resume(tmp_path):
    run = record(tmp_path / "run", CATCH, iterations=range(1, 4))
    record(run, CATCH, iterations=range(4, 8), first_episode=20, lanes=(3,), steps=11)
    made = export_minari(run / "archive", "resumed-v0")
    check(run / "archive", "resumed-v0")
    assert any("Left out, as not all their steps" in note for note in made.notes)


def test_views_hold_no_data(archive, root):
    export_minari(archive, "views-v0")
    with h5py.File(root / "views-v0/data/main_data.hdf5") as file:
        for name in ("observations", "actions", "rewards", "infos/value"):
            dataset = file["episode_3"][name]
            assert dataset.is_virtual and dataset.id.get_storage_size() == 0
            assert not Path(dataset.virtual_sources()[0].file_name).is_absolute()


def test_a_copy_outlives_the_archive(archive, root):
    expected = episodes_of(archive)
    export_minari(archive, "copies-v0", copy=True)
    shutil.rmtree(archive)
    episodes = list(minari.load_dataset("copies-v0").iterate_episodes())
    for episode, original in zip(episodes, expected.values(), strict=True):
        assert_equal(episode.observations, original["observation"])
    assert sorted(path.name for path in (root / "copies-v0/data").iterdir()) == ["main_data.hdf5", "metadata.json"]


def test_views_and_archive_can_be_moved_together(archive, tmp_path, root, monkeypatch):
    export_minari(archive, "views-v0")
    (tmp_path / "elsewhere").mkdir()
    for folder in ("run", "datasets"):
        (tmp_path / folder).rename(tmp_path / "elsewhere" / folder)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "elsewhere/datasets"))
    monkeypatch.chdir("/")
    check(tmp_path / "elsewhere/run/archive", "views-v0")


def test_a_lost_segment_shows_in_rewards_that_are_no_numbers(archive):
    export_minari(archive, "views-v0")
    segments(archive)[-1].unlink()
    episodes = list(minari.load_dataset("views-v0").iterate_episodes())
    assert not np.isnan(episodes[0].rewards).any()
    assert np.isnan(episodes[-1].rewards).all() and (episodes[-1].actions == -1).all()


def test_minari_lists_combines_and_extends_the_dataset(archive):
    export_minari(archive, "space/deep/catch-v0", metadata={"author": ["Ada"], "code_permalink": "https://example.org"})
    export_minari(archive, "catch-v1", copy=True)
    assert set(minari.list_local_datasets()) == {"space/deep/catch-v0", "catch-v1"}
    assert minari.namespace.list_local_namespaces() == ["space", "space/deep"]
    datasets = [minari.load_dataset(name) for name in ("space/deep/catch-v0", "catch-v1")]
    assert datasets[0].storage.metadata["author"] == {"Ada"}
    winners = datasets[0].filter_episodes(lambda episode: episode.rewards.sum() > 0)
    assert 0 < len(winners) < len(datasets[0])
    assert len(minari.combine_datasets(datasets, "both-v0")) == 2 * len(datasets[0])


@pytest.mark.parametrize("emulator, shape", [(CARTPOLE, (4,)), (DQN | {"game": "SpaceInvaders"}, (84, 84))])
def test_the_environment_is_recovered(emulator, shape, tmp_path):
    for package in ("ale_py", "cv2") if "game" in emulator else ("gymnasium",):
        pytest.importorskip(package)
    run = record(tmp_path / "run", emulator, iterations=range(1, 9))
    export_minari(run / "archive", "game-v0")
    dataset = minari.load_dataset("game-v0")
    environment = dataset.recover_environment()
    observation, _ = environment.reset(seed=1)
    assert observation.shape == shape and observation in dataset.observation_space
    assert environment.action_space == dataset.action_space and dataset.spec.env_spec.id == environment.spec.id
    environment.close()


def test_an_emulator_of_ones_own_has_no_environment(archive):
    export_minari(archive, "catch-v0")
    assert minari.load_dataset("catch-v0").env_spec is None


def test_zstd_is_told(tmp_path, simulation):
    pytest.importorskip("hdf5plugin")
    writer = SegmentWriter(tmp_path / "archive", simulation.layout, {}, compression="zstd")
    for iteration in range(1, 5):
        writer.write(iteration, 0, *simulation.batch(iteration))
    writer.close()
    assert any("hdf5plugin" in note for note in export_minari(tmp_path / "archive", "zstd-v0").notes)
    assert not any("hdf5plugin" in note for note in export_minari(tmp_path / "archive", "copy-v0", copy=True).notes)


@pytest.mark.parametrize("name, mend", [("pong", "write pong-v0"), ("a b-v0", "takes"), ("../x-v0", "takes"), ("/x-v1", "takes")])
def test_a_name_that_minari_refuses(name, mend, archive, root):
    with pytest.raises(UserError, match=mend):
        export_minari(archive, name)
    assert not root.exists()


def test_an_existing_dataset_is_replaced_only_if_told(archive, root):
    first = export_minari(archive, "catch-v0")
    with pytest.raises(UserError, match="--overwrite"):
        export_minari(archive, "catch-v0", copy=True)
    made = export_minari(archive, "catch-v0", copy=True, overwrite=True)
    assert isinstance(made, Exported) and made.path == first.path and len(minari.load_dataset("catch-v0")) == made.episodes
    assert [path.name for path in root.iterdir()] == ["catch-v0"]
    (root / "mine-v0").mkdir()
    with pytest.raises(UserError, match="no Minari dataset"):
        export_minari(archive, "mine-v0", overwrite=True)


def test_a_failure_leaves_the_old_dataset_and_no_rest(archive, root, monkeypatch):
    made = export_minari(archive, "catch-v0")
    monkeypatch.setattr("mpirl.archive.minari.shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(UserError, match="1,000 bytes free"):
        export_minari(archive, "catch-v0", copy=True, overwrite=True)
    assert len(minari.load_dataset("catch-v0")) == made.episodes and [path.name for path in root.iterdir()] == ["catch-v0"]


def test_archives_without_whole_episodes_and_without_observations(tmp_path):
    run = record(tmp_path / "run", CATCH, iterations=[1], steps=3)
    with pytest.raises(UserError, match="no whole episode"):
        export_minari(run / "archive", "catch-v0")
    bare = record(tmp_path / "bare", CATCH) / "archive"
    for path in segments(bare):
        with h5py.File(path, "r+") as file:
            del file["observation"]
    with pytest.raises(UserError, match="holds no observations"):
        export_minari(bare, "catch-v0")


def test_fields_that_cannot_be_groups():
    with pytest.raises(UserError, match="'observation.a' cannot be a group .* beside"):
        observation_paths({"observation.a": None, "observation.a.b": None})


def test_unbounded_spaces_span_their_dtype():
    space = space_json(ArraySpec((2,), "int8"))
    assert space == {"type": "Box", "dtype": "int8", "shape": [2], "low": [-128, -128], "high": [127, 127]}
    assert space_json(ArraySpec((), "float32", low=0.0))["high"] == float("inf")


def test_torchrl_reads_the_dataset(archive, tmp_path, monkeypatch):
    data = pytest.importorskip("torchrl.data.datasets.minari_data")
    # TorchRL 0.14 keeps an empty copy (memmap_like) of any dataset that it has read; here it keeps what it has read.
    monkeypatch.setattr(data.TensorDict, "memmap_like", data.TensorDict.memmap)
    export_minari(archive, "catch-v0")
    settings = {"root": tmp_path / "torchrl", "load_from_local_minari": True, "download": False}
    steps = data.MinariExperienceReplay("catch-v0", batch_size=4, **settings)[:]
    episodes = episodes_of(archive).values()
    for name, field, part in [
        (("next", "reward"), "reward", slice(None)),
        ("action", "action", slice(None)),
        ("observation", "observation", slice(-1)),
        (("next", "observation"), "observation", slice(1, None)),
        (("info", "value"), "value", slice(-1)),
    ]:
        expected = np.concatenate([episode[field][part] for episode in episodes])
        np.testing.assert_array_equal(steps[name].numpy().reshape(expected.shape), expected)
    ends = [[False] * (episode["length"] - 1) + [True] for episode in episodes]
    assert steps["next", "terminated"][:, 0].tolist() == sum(ends, [])
