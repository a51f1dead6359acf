"""Whole offline runs in worlds of threads, on the archive of a short run of Catch."""

import json
import shutil

import h5py
import pytest
import torch
import yaml
from running import run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mpirl.archive.reader import Segment, segments
from mpirl.archive.windows import is_held_out
from mpirl.config import compose_job
from mpirl.errors import UserError


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The folder of a run of Catch with a board of its own size: 3000 steps, from random play to fair."""
    folder = tmp_path_factory.mktemp("recorded") / "catch/1"
    run("emulator=catch", "emulator.rows=6", "emulator.columns=3", "total_steps=3000", "steps=16", f"run_dir={folder}")
    return folder


@pytest.fixture
def offline(recorded, tmp_path):
    """offline(algorithm, key=value, ...): an offline run in tmp_path/run (or run_dir=), its config."""

    def start(algorithm, *overrides, ranks=2):
        own = [f"run_dir={tmp_path}/run", "offline.steps_per_iteration=1000", "offline.buffer_steps=500", "offline.epochs=2"]
        keys = {each.split("=")[0] for each in map(str, overrides)}
        own = [each for each in own if each.split("=")[0] not in keys]
        return run("program=offline", f"archive={recorded}", f"algorithm={algorithm}", *own, *overrides, ranks=ranks)

    return start


def state_of(folder):
    return torch.load(sorted(folder.glob("checkpoints/0*.pt"))[-1], weights_only=True)


@pytest.mark.parametrize("algorithm", ["bc", "filtered_bc", "awr"])
def test_a_run_leaves_what_a_training_run_leaves(offline, tmp_path, capsys, algorithm):
    config = offline(algorithm, "offline.validation=0.2")
    said = capsys.readouterr().out
    assert "epoch 2.00 | evaluation " in said and "negative log-likelihood" in said and ", validation " in said
    assert "to learn from, " in said and "held out for validation" in said
    folder = tmp_path / "run"
    assert config["emulator"]["rows"] == 6, "the emulator is the archive's, with its settings"
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "finished" and (folder / "COMPLETED").is_file()
    assert status["evaluation"]["episodes"] >= 10 and (folder / "checkpoints/best.pt").is_file()
    accounts = status["accounts"]
    assert accounts["learned"] == status["steps"] == status["total_steps"]
    assert accounts["learned"] + sum(accounts["dropped"].values()) == accounts["gathered"] == 2 * total_steps_of(config)
    assert accounts["dropped"]["held out for validation"] > 0
    assert ("of episodes below the top 10 % of returns" in accounts["dropped"]) == (algorithm == "filtered_bc")
    tags = EventAccumulator(str(folder)).Reload().Tags()["scalars"]
    assert {"valid/negative_log_likelihood", "train/negative_log_likelihood", "eval/mean_reward", "train/epoch"} <= set(tags)


def total_steps_of(config):
    total = 0
    for path in segments(f"{config['offline']['archive']}/archive"):
        with Segment(path) as segment:
            total += sum(int((segment.trajectory(i)["step_type"][:, :-1] != 2).sum()) for i in range(len(segment.iterations)))
    return total


def test_held_out_episodes_are_never_learned_from(offline, tmp_path, recorded):
    """What is learned does not change when the held-out episodes' actions do."""
    weights = []
    for other in (False, True):
        changed = tmp_path / f"archive-{other}"
        shutil.copytree(recorded / "archive", changed)
        if other:
            change_actions(changed, 0.3)
        own = [f"archive={changed}", f"run_dir={tmp_path}/{other}", "offline.validation=0.3", "offline.evaluate_every=0"]
        offline("awr", *own, ranks=1)
        weights.append(state_of(tmp_path / str(other))["weights"])
    assert torch.equal(*weights)


def change_actions(directory, share):
    for path in segments(directory):
        with h5py.File(path, "r+") as file:
            held_out = is_held_out(file["episode"][:, :, :-1], share)
            action, reward = file["action"][:], file["reward"][:]
            action[held_out] = 2 - action[held_out]
            reward[held_out] += 7
            file["action"][:], file["reward"][:] = action, reward


def test_an_interrupted_run_goes_on_bit_for_bit(offline, tmp_path):
    offline("awr", "checkpoint.every=1", "checkpoint.keep=100", "offline.evaluate_every=0")
    folder = tmp_path / "run"
    whole = state_of(folder)
    for number in range(4, whole["iteration"] + 1):
        (folder / f"checkpoints/0000000{number}.pt").unlink()
    config = run("resume=true", f"run_dir={folder}")
    assert config["program"] == "offline", "a run goes on as what it was"
    resumed = state_of(folder)
    assert torch.equal(whole["weights"], resumed["weights"])
    assert (whole["steps"], whole["accounts"]) == (resumed["steps"], resumed["accounts"])


def test_a_finished_run_can_be_given_more_epochs(offline, tmp_path):
    offline("bc", "offline.evaluate_every=0")
    steps = state_of(tmp_path / "run")["steps"]
    run("resume=true", f"run_dir={tmp_path}/run", "offline.epochs=3")
    assert state_of(tmp_path / "run")["steps"] == steps // 2 * 3


def test_several_archives_are_learned_from_together(offline, tmp_path, recorded):
    shutil.copytree(recorded / "archive", tmp_path / "more/archive")
    one = offline("bc", "offline.evaluate_every=0", ranks=1)
    own = [f"archive=[{recorded},{tmp_path}/mo*]", "offline.evaluate_every=0", f"run_dir={tmp_path}/both"]
    both = offline("bc", *own, ranks=1)
    assert state_of(tmp_path / "both")["steps"] == 2 * state_of(tmp_path / "run")["steps"]
    assert one["emulator"] == both["emulator"]


def test_the_learner_may_be_alone(offline, tmp_path, capsys):
    offline("bc", ranks=1)
    assert "no evaluation: the learner is alone" in capsys.readouterr().out
    assert "evaluation" not in json.loads((tmp_path / "run/status.json").read_text())


def test_without_the_emulators_package_there_is_no_evaluation_and_that_is_said_once(offline, tmp_path, capsys, monkeypatch):
    text = "class Game:\n    def __init__(self):\n        import a_package_that_is_not_there\n"
    (tmp_path / "missing_game.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    own = ["~emulator.rows", "~emulator.columns", "~emulator.latency", "emulator._target_=missing_game.Game"]
    offline("bc", "emulator=catch", *own, ranks=3)
    said = capsys.readouterr().out
    assert said.count("no evaluation: ") == 1 and "a_package_that_is_not_there" in said
    assert (tmp_path / "run/COMPLETED").is_file()


def test_the_recorded_emulator_need_not_be_there(offline, tmp_path, recorded, capsys):
    changed = tmp_path / "elsewhere"
    shutil.copytree(recorded / "archive", changed)
    for path in segments(changed):
        with h5py.File(path, "r+") as file:
            file.attrs["header"] = file.attrs["header"].replace("mpirl.emulators.catch.Catch", "game_of_another_host.Game")
    offline("bc", f"archive={changed}")
    assert "no evaluation: " in (said := capsys.readouterr().out) and "game_of_another_host" in said


def test_an_emulator_of_other_specs_is_refused(offline):
    with pytest.raises(UserError, match="not of this emulator.*evaluate_every=0"):
        offline("bc", "emulator.rows=9")


def test_ppo_cannot_learn_offline(offline, tmp_path):
    with pytest.raises(UserError, match="PPO cannot learn from an archive: choose algorithm=bc, filtered_bc or awr"):
        offline("ppo")
    assert not (tmp_path / "run").exists(), "a run that never began leaves nothing"


def test_nothing_to_learn_from_is_said(offline, tmp_path):
    with pytest.raises(UserError, match="nothing to learn from.*0 to learn from"):
        offline("bc", "offline.validation=0.9999999")


def test_online_training_begins_with_the_offline_weights(offline, tmp_path, capsys):
    offline("awr")
    online = ["emulator=catch", "emulator.rows=6", "emulator.columns=3", "steps=16", "total_steps=64", f"run_dir={tmp_path}/online"]
    run(*online, f"init_from={tmp_path}/run", "algorithm.learning_rate=1e-12")
    offline_state, online_state = state_of(tmp_path / "run"), state_of(tmp_path / "online")
    torch.testing.assert_close(online_state["weights"], offline_state["weights"], atol=1e-6, rtol=0)
    assert online_state["steps"] < 200 and "began with the weights of" in capsys.readouterr().out


def test_weights_of_another_model_are_refused_by_name(offline, tmp_path):
    offline("bc", "offline.evaluate_every=0", ranks=1)
    with pytest.raises(UserError, match=r"init_from=.*/run: .*pt holds [\d,]+ \(.*model_for\), this run's model has \d+ \(.*MLP, hidden=\[4\]"):
        offline("bc", f"init_from={tmp_path}/run", "model=mlp", "model.hidden=[4]", f"run_dir={tmp_path}/other")
    offline("bc", "model=mlp", "model.activation=relu", "offline.evaluate_every=0", f"run_dir={tmp_path}/relu", ranks=1)
    with pytest.raises(UserError, match="activation=relu.*activation=tanh"):  # as many weights, but another function of them
        offline("bc", f"init_from={tmp_path}/relu", "model=mlp", f"run_dir={tmp_path}/other")
    with pytest.raises(UserError, match="there is no such run or checkpoint"):
        offline("bc", f"init_from={tmp_path}/nowhere", f"run_dir={tmp_path}/other")


def test_one_command_goes_from_offline_to_online_and_can_be_taken_up(recorded, tmp_path, capsys):
    command = ["program=offline_to_online", f"archive={recorded}", "algorithm=bc", "algorithm@online=ppo", "steps=16"]
    command += ["offline.epochs=1", "total_steps=200", f"run_dir={tmp_path}/run"]
    run(*command)
    first, second = (yaml.safe_load((tmp_path / name / "config.yaml").read_text()) for name in ("run-offline", "run"))
    assert first["program"] == "offline" and second["program"] == "train" and second["algorithm"]["_target_"].endswith("PPO")
    assert "began with the weights of" in capsys.readouterr().out
    assert state_of(tmp_path / "run")["steps"] >= 200
    shutil.rmtree(tmp_path / "run")
    run(*command, "resume=auto")
    assert (tmp_path / "run/COMPLETED").is_file() and "began with the weights of" in capsys.readouterr().out


def test_awr_goes_on_online_by_itself(recorded, tmp_path):
    command = ["program=offline_to_online", f"archive={recorded}", "algorithm=awr", "steps=16", "offline.epochs=1"]
    config = run(*command, "total_steps=200", f"run_dir={tmp_path}/run")
    assert config["algorithm"]["_target_"].endswith("AWR")


def test_two_level_filtering_runs(offline, tmp_path):
    offline("awr", "algorithm.two_level=true", "offline.evaluate_every=0", ranks=1)
    seen = state_of(tmp_path / "run")["algorithm"]["tasks"]["advantage"]
    assert 0 < int(seen.isnan().sum()) < 0.3 * len(seen), "all but those held out have been judged"


def test_a_saved_offline_run_is_evaluated(offline, tmp_path):
    offline("filtered_bc")
    run("program=evaluate", f"run_dir={tmp_path}/run", "evaluation.checkpoint=best")
    assert json.loads((tmp_path / "run/evaluation.json").read_text())["episodes"] >= 10


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["program=offline"], "program=offline learns from an archive: add archive=PATH"),
        (["archive=false"], "archive=False is for program=offline.*archive.enabled"),
        (["algorithm=bc", "emulator=catch"], "bc.BC learns from archives only: write program=offline"),
        (["program=offline", "archive=nowhere"], "no archive at nowhere"),
    ],
)
def test_what_does_not_go_together_is_told(overrides, message):
    with pytest.raises(UserError, match=message):
        compose_job(overrides)


def test_going_online_with_an_offline_algorithm_is_refused(recorded):
    with pytest.raises(UserError, match="learns from archives only: add algorithm@online=ppo"):
        compose_job(["program=offline_to_online", f"archive={recorded}", "algorithm=bc"])


def test_a_saved_run_cannot_become_another_program(offline, tmp_path):
    offline("bc", "offline.evaluate_every=0", ranks=1)
    with pytest.raises(UserError, match="init_from="):
        compose_job(["program=train", "resume=true", f"run_dir={tmp_path}/run"])


def test_the_name_tells_the_algorithm_so_that_the_recorded_run_is_not_in_the_way(recorded):
    config = compose_job(["program=offline", f"archive={recorded}", "algorithm=awr"]).config
    assert config["run_dir"] == "runs/catch-awr/1" and config["choices"]["emulator"] == "catch"


def test_the_archives_own_node_can_still_be_set(recorded):
    config = compose_job(["emulator=catch", "archive={enabled:false,level:3}"]).config
    assert config["archive"]["enabled"] is False and config["archive"]["level"] == 3
