"""Minari datasets and flat HDF5 files become archives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from archived import CARTPOLE, CATCH, PENDULUM, record
from test_minari import GADGET
from whole import assert_equal, episodes_of

from mpirl.archive import importing
from mpirl.archive.importing import import_episodes
from mpirl.archive.minari import export_minari
from mpirl.archive.reader import Segment, read_archive, segments
from mpirl.archive.survey import survey
from mpirl.archive.windows import Purpose, Use, find_windows
from mpirl.emulators.lanes import make_emulator
from mpirl.errors import UserError
from mpirl.specs import ArraySpec, Specs


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch) -> Path:
    """Where Minari looks for datasets."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    return tmp_path / "datasets"


def flat_file(path: Path, lengths=(5, 3, 6), ends="terminals timeouts terminals", **arrays) -> dict[str, np.ndarray]:
    """A file as D4RL has them; observation t of episode e is (e, t)."""
    total = sum(lengths)
    observation = [(e, t) for e, length in enumerate(lengths) for t in range(length + 1)]
    data = {
        "observations": np.array([(e, t) for e, t in observation if t < lengths[e]], "float32"),
        "next_observations": np.array([(e, t) for e, t in observation if t], "float32"),
        "actions": np.linspace(-1, 1, 3 * total, dtype="float64").reshape(total, 3),
        "rewards": np.arange(total, dtype="float32"),
        "terminals": np.zeros(total, bool),
        "timeouts": np.zeros(total, bool),
        "infos/action_log_probs": np.arange(total, dtype="float64") / 8,
        "infos/qpos": np.arange(2 * total, dtype="float64").reshape(total, 2),
        "metadata/policy": np.zeros(3),
    } | arrays
    for name, last in zip(ends.split(), np.cumsum(lengths) - 1):
        if name in data and data[name] is not None:
            data[name][last] = True
    data = {name: array for name, array in data.items() if array is not None}
    with h5py.File(path, "w") as file:
        for name, array in data.items():
            file[name] = array
    return data


@pytest.mark.parametrize("longest", [512, 7, 6, 1])
def test_a_flat_file_with_next_observations_keeps_every_step(longest, tmp_path, monkeypatch):
    monkeypatch.setattr(importing, "LONGEST", longest)
    data = flat_file(tmp_path / "flat.hdf5")
    made = import_episodes(tmp_path / "flat.hdf5", tmp_path / "archive")
    found = episodes_of(tmp_path / "archive")
    assert (made.episodes, made.steps, made.counts) == (3, 14, {}) and list(found) == [0, 1, 2]
    starts = [0, 5, 8, 14]
    for id, episode in found.items():
        steps = slice(starts[id], starts[id + 1])
        assert_equal(episode["observation"], np.array([(id, t) for t in range(episode["length"] + 1)], "float32"))
        assert_equal(episode["action"], data["actions"][steps].astype("float32"))
        assert_equal(episode["reward"], data["rewards"][steps])
        assert_equal(episode["log_prob"], data["infos/action_log_probs"][steps].astype("float32"))
        np.testing.assert_array_equal(episode["qpos"][:-1], data["infos/qpos"][steps].astype("float32"))
        assert np.isnan(episode["qpos"][-1]).all()
        assert episode["return"] == data["rewards"][steps].sum()
        assert episode["reason"] == ("truncated" if id == 1 else "terminated")
        assert episode["discount"].tolist() == [1.0] * (episode["length"] - 1) + [float(id == 1)]


def test_without_next_observations_a_cut_off_episode_loses_its_last_step(tmp_path):
    flat_file(tmp_path / "flat.hdf5", next_observations=None)
    made = import_episodes(tmp_path / "flat.hdf5", tmp_path / "archive")
    found = episodes_of(tmp_path / "archive")
    assert [episode["length"] for episode in found.values()] == [5, 2, 6]
    assert found[1]["observation"].tolist() == [[1, 0], [1, 1], [1, 2]] and found[1]["reward"].tolist() == [5, 6]
    assert found[0]["observation"].tolist() == [[0, t] for t in (0, 1, 2, 3, 4, 4)]
    assert made.counts == {"steps dropped, as the observation after them is not in the file": 1} and made.steps == 13


def test_a_tail_without_an_end_is_truncated_and_counted(tmp_path):
    flat_file(tmp_path / "flat.hdf5", ends="terminals timeouts")
    made = import_episodes(tmp_path / "flat.hdf5", tmp_path / "archive")
    assert episodes_of(tmp_path / "archive")[2]["reason"] == "truncated"
    assert made.counts == {"episodes without an end taken as truncated": 1} and made.steps == 14


def test_whole_numbers_are_discrete_actions(tmp_path):
    flat_file(tmp_path / "flat.hdf5", actions=np.arange(14)[:, None] % 4)
    import_episodes(tmp_path / "flat.hdf5", tmp_path / "archive")
    with Segment(segments(tmp_path / "archive")[0]) as segment:
        assert segment.layout.specs.action == ArraySpec((), "int64", num_values=4)
    assert episodes_of(tmp_path / "archive")[1]["action"].tolist() == [1, 2, 3]


@pytest.mark.parametrize("longest", [512, 9])
def test_offline_learning_sees_the_true_steps_only(longest, tmp_path, monkeypatch):
    monkeypatch.setattr(importing, "LONGEST", longest)
    flat_file(tmp_path / "flat.hdf5", lengths=(5, 3, 6, 8), ends="terminals timeouts terminals timeouts")
    import_episodes(tmp_path / "flat.hdf5", tmp_path / "archive")
    found = survey(str(tmp_path / "archive"))
    windows = find_windows(found, Purpose(np.ones(4, bool), validation=0.0))
    assert windows.totals[Use.TRAINING] == 22 == windows.totals.sum() and found.episodes["length"].tolist() == [5, 3, 6, 8]


def test_every_slot_after_the_last_episode_is_a_seam(tmp_path, monkeypatch):
    monkeypatch.setattr(importing, "LONGEST", 10)
    flat_file(tmp_path / "flat.hdf5")
    import_episodes(tmp_path / "flat.hdf5", tmp_path / "archive")
    (_, _, first), (_, _, second) = read_archive(tmp_path / "archive")
    assert second["step_type"][0].tolist() == [0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2]
    assert first["step_type"][0, -1] == second["step_type"][0, 0] and first["collected"].tolist() == [8]
    assert second["reward"][0, 6:].tolist() == [0] * 4 and second["discount"][0, 6:].tolist() == [1] * 4


@pytest.mark.parametrize("emulator", [CATCH, GADGET, PENDULUM], ids=["catch", "dict observation", "pendulum"])
@pytest.mark.parametrize("copy", [False, True])
def test_round_trip_from_archive_to_archive(emulator, copy, tmp_path):
    if emulator is PENDULUM:
        pytest.importorskip("gymnasium")
    iterations = range(1, 28) if emulator is PENDULUM else range(1, 6)
    run = record(tmp_path / "run", emulator, iterations=iterations, context=2)
    export_minari(run / "archive", "there/and-back-v0", copy=copy)
    made = import_episodes("there/and-back-v0", tmp_path / "archive")
    original, found = episodes_of(run / "archive"), episodes_of(tmp_path / "archive")
    assert len(original) == len(found) == made.episodes > 0 and made.counts == {}
    for before, after in zip(original.values(), found.values()):
        for name in ("seed", "length", "return", "reason", *(name for name, values in before.items() if np.ndim(values))):
            assert_equal(np.asarray(after[name]), np.asarray(before[name]))
    with Segment(segments(run / "archive")[0]) as one, Segment(segments(tmp_path / "archive")[0]) as other:
        assert one.layout.specs == other.layout.specs and one.layout.extras == other.layout.extras
        assert other.header["config"] == {} and other.header["source"]["dataset_id"] == "there/and-back-v0"


def played(environment, seed: int):
    """An episode of random actions as Minari takes it."""
    from minari.data_collector import EpisodeBuffer

    observation, _ = environment.reset(seed=seed)
    empty = {name: [] for name in ("actions", "rewards", "terminations", "truncations")}
    buffer = EpisodeBuffer(id=None, seed=seed, observations=[observation], **empty)
    while not (buffer.terminations and (buffer.terminations[-1] or buffer.truncations[-1])):
        buffer.actions.append(np.int64(np.random.default_rng(len(buffer.actions)).integers(2)))
        values = environment.step(buffer.actions[-1])
        for column, value in zip((buffer.observations, buffer.rewards, buffer.terminations, buffer.truncations), values):
            column.append(value)
    return buffer


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
def test_a_dataset_that_minari_made(tmp_path):
    minari = pytest.importorskip("minari")
    gymnasium = pytest.importorskip("gymnasium")
    environment = gymnasium.make("CartPole-v1")
    buffers = [played(environment, seed) for seed in (40, 41, 42, 43)]
    dataset = minari.create_dataset_from_buffers("cartpole/random-v0", buffers, env=environment, algorithm_name="random")
    import_episodes("cartpole/random-v0", tmp_path / "archive")
    found = episodes_of(tmp_path / "archive")
    for episode, after in zip(dataset.iterate_episodes(), found.values(), strict=True):
        assert_equal(after["observation"], episode.observations)
        assert_equal(after["action"], episode.actions)
        assert_equal(after["reward"], episode.rewards.astype("float32"))
        assert np.isnan(after["log_prob"]).all()
    assert [episode["seed"] for episode in found.values()] == [40, 41, 42, 43]
    emulator = make_emulator({"emulator": CARTPOLE}, 1)
    with Segment(segments(tmp_path / "archive")[0]) as segment:
        assert segment.layout.specs == emulator.specs
        assert segment.header["source"]["algorithm_name"] == "random" and "CartPole-v1" in segment.header["source"]["env_spec"]


def stacked(values: list) -> dict | np.ndarray:
    """Of a list of (nested) dicts, the dict of lists."""
    if isinstance(values[0], dict):
        return {key: stacked([value[key] for value in values]) for key in values[0]}
    return np.stack(values)


class Buffers:
    """Episodes of 3 steps for spaces of one's choice, given to Minari."""

    def __init__(self, observation_space, action_space, infos=None, **settings):
        self.minari = pytest.importorskip("minari")
        observation_space.seed(1), action_space.seed(2)
        buffer = self.minari.data_collector.EpisodeBuffer
        self.episodes = [
            buffer(
                id=None,
                observations=stacked([observation_space.sample() for _ in range(4)]),
                actions=[action_space.sample() for _ in range(3)],
                rewards=[1.0, 2.0, 3.0],
                terminations=[False] * 3,
                truncations=[False] * 3,
                infos=infos,
            )
            for _ in range(2)
        ]
        spaces = {"observation_space": observation_space, "action_space": action_space}
        self.dataset = self.minari.create_dataset_from_buffers("made-v0", self.episodes, **spaces, **settings)


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
def test_spaces_are_taken_as_the_gymnasium_emulator_takes_them(tmp_path):
    spaces = pytest.importorskip("gymnasium.spaces")
    inner = spaces.Dict({"pressed": spaces.MultiBinary(3), "dial": spaces.MultiDiscrete([4, 5])})
    space = spaces.Dict({"arm": spaces.Box(-2, 2, (3,), np.float64), "box": inner, "room": spaces.Discrete(5, start=7)})
    infos = {"goal": np.arange(4.0), "deep": {"flag": np.array([True] * 4)}, "reward": np.zeros(4), "text": ["a"] * 4}
    made = Buffers(space, spaces.Discrete(3, start=-1), infos)
    counts = import_episodes("made-v0", tmp_path / "archive").counts
    assert counts["episodes without an end taken as truncated"] == 2 and len(counts) == 2
    (_, _, batch), *_ = read_archive(tmp_path / "archive")
    specs, before = batch.layout.specs, made.episodes[0].observations
    assert specs == Specs(
        {
            "observation.arm": ArraySpec((3,), "float32", low=-2.0, high=2.0),
            "observation.box.dial": ArraySpec((2,), "int64", low=0.0, high=(3.0, 4.0)),
            "observation.box.pressed": ArraySpec((3,), "int8", low=0.0, high=1.0),
            "observation.room": ArraySpec((), "int64", num_values=5),
        },
        ArraySpec((), "int64", num_values=3),
    )
    assert_equal(batch["observation.arm"][0, :4], before["arm"].astype("float32"))
    assert_equal(batch["observation.box.dial"][0, :4], before["box"]["dial"])
    assert_equal(batch["observation.room"][0, :4], before["room"] - 7)
    assert batch["action"][0, :3].tolist() == [int(action) + 1 for action in made.episodes[0].actions]
    assert batch["goal"][0, :4].tolist() == [0, 1, 2, 3] and batch["deep.flag"][0, :4].all() and "info_reward" in batch


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
def test_jpeg_images_are_unpacked(tmp_path):
    spaces = pytest.importorskip("gymnasium.spaces")
    made = Buffers(spaces.Box(0, 255, (40, 48, 3), np.uint8), spaces.Box(-1, 1, (2,), np.float32))
    import_episodes("made-v0", tmp_path / "archive")
    for episode, after in zip(made.dataset.iterate_episodes(), episodes_of(tmp_path / "archive").values(), strict=True):
        assert_equal(after["observation"], episode.observations)


@pytest.mark.parametrize("kind", ["Text", "Tuple", "MultiDiscrete action"])
def test_spaces_that_mpirl_does_not_have(kind, tmp_path, root):
    box = {"type": "Box", "dtype": "float32", "shape": [1], "low": [0], "high": [1]}
    observation = box if "action" in kind else {"type": "Dict", "subspaces": {"part": {"type": kind, "subspaces": [box]}}}
    action = {"type": "MultiDiscrete", "dtype": "int64", "nvec": [2, 2], "start": [0, 0]} if "action" in kind else box
    (root / "odd-v0/data").mkdir(parents=True)
    spaces = {"observation_space": json.dumps(observation), "action_space": json.dumps(action)}
    metadata = {"data_format": "hdf5", "total_episodes": 0, "total_steps": 0, **spaces}
    (root / "odd-v0/data/metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(UserError, match="a space of type .*mpirl has"):
        import_episodes("odd-v0", tmp_path / "archive")


def test_views_of_an_archive_that_is_gone_are_refused(tmp_path):
    run = record(tmp_path / "run", CATCH)
    export_minari(run / "archive", "catch-v0")
    shutil.rmtree(run)
    with pytest.raises(UserError, match="reward that is not finite.*archive is gone"):
        import_episodes("catch-v0", tmp_path / "archive")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["datasets"]


@pytest.mark.parametrize(
    "arrays, words",
    [
        ({"timeouts": None}, "lacks timeouts"),
        ({"rewards": np.zeros(13)}, "one row for each step, and have .*'rewards': 13"),
        ({"actions": np.full(14, -1)}, "from -1 on"),
        ({"actions": np.zeros((14, 2), int)}, r"actions in .* shape \(14, 2\) and dtype int64"),
        ({"observations": np.array([b"x"] * 14)}, "mpirl has numbers only"),
    ],
)
def test_flat_files_that_are_none(arrays, words, tmp_path):
    flat_file(tmp_path / "flat.hdf5", **arrays)
    with pytest.raises(UserError, match=words):
        import_episodes(tmp_path / "flat.hdf5", tmp_path / "archive")
    assert not (tmp_path / "archive").exists()


def test_places_that_hold_no_dataset(tmp_path):
    (tmp_path / "text.hdf5").write_text("hello")
    for place, words in [("nowhere-v0", "neither a Minari dataset"), (tmp_path / "text.hdf5", "cannot be read as HDF5")]:
        with pytest.raises(UserError, match=words):
            import_episodes(place, tmp_path / "archive")
    flat_file(tmp_path / "flat.hdf5")
    with pytest.raises(UserError, match="exists: name a new folder"):
        import_episodes(tmp_path / "flat.hdf5", tmp_path)


def test_the_specs_of_an_emulator_are_taken_if_they_fit(tmp_path):
    flat_file(tmp_path / "flat.hdf5")
    wanted = Specs({"observation": ArraySpec((2,), "float32", low=0.0)}, ArraySpec((3,), "float32", low=-1.0, high=1.0))
    import_episodes(tmp_path / "flat.hdf5", tmp_path / "archive", specs=wanted)
    with Segment(segments(tmp_path / "archive")[0]) as segment:
        assert segment.layout.specs == wanted
    other = Specs(wanted.observation, ArraySpec((), "int64", num_values=3))
    with pytest.raises(UserError, match="is not of this emulator: its action is"):
        import_episodes(tmp_path / "flat.hdf5", tmp_path / "other", specs=other)
