"""The config: what the command line makes of it, mistakes in it, sweeps, and the configs of saved runs."""

import copy
import sys

import pytest
import yaml

from mpirl.config import check, for_each_job
from mpirl.errors import UserError

GAME = """
class Game:
    def __init__(self, size: int = 3, speed: float = 1.0):
        pass
"""


@pytest.fixture(scope="module")
def good():
    """A good config, made once."""
    patch, found = pytest.MonkeyPatch(), []
    with patch.context() as patched:
        patched.setattr(sys, "argv", ["mpirl", "emulator=catch", "model=mlp"])
        patched.setenv("HYDRA_FULL_ERROR", "")
        for_each_job(lambda job: found.append(job) or 0)
    return found[0].config


@pytest.fixture
def jobs(tmp_path, monkeypatch, capsys):
    """jobs("key=value", ...): the jobs of a command line in an empty folder, its exit code, and its messages."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")  # which it was before the tests, too

    def compose(*arguments):
        monkeypatch.setattr(sys, "argv", ["mpirl", *arguments])
        found = []
        try:
            code = for_each_job(lambda job: found.append(job) or 0)
        except SystemExit as left:
            code = left.code
        except UserError as error:
            print(error)
            code = 2
        captured = capsys.readouterr()
        return found, code, captured.out + captured.err

    return compose


@pytest.fixture
def one(jobs):
    """one("key=value", ...): the config of a command line that asks for one good run."""

    def compose(*arguments):
        found, code, messages = jobs(*arguments)
        assert (code, messages, len(found)) == (0, "", 1)
        return found[0].config

    return compose


@pytest.fixture
def refused(jobs):
    """refused("key=value", ...): the message of a command line that is a mistake; nothing runs."""

    def compose(*arguments):
        found, code, messages = jobs(*arguments)
        assert code and not found
        assert "Traceback" not in messages
        return messages

    return compose


@pytest.fixture
def saved(good, tmp_path):
    """saved(run_dir, key=value, ...): put a run's config, changed as told, where the run would have; the config."""

    def save(run_dir, **changes):
        config = {**copy.deepcopy(good), "run_dir": run_dir, **changes}
        (tmp_path / run_dir).mkdir(parents=True)
        (tmp_path / run_dir / "config.yaml").write_text(yaml.safe_dump(config))
        return config

    return save


def test_a_config_is_plain_resolved_and_the_same_as_its_text(jobs, tmp_path):
    (job,), code, _ = jobs("emulator=catch")
    assert code == 0 and yaml.safe_load(job.text) == job.config
    assert (job.config["name"], job.config["trial"], job.config["run_dir"]) == ("catch", "1", "runs/catch/1")
    choices = {"algorithm": "ppo", "model": "auto", "emulator": "catch", "experiment": None}
    assert choices.items() <= job.config["choices"].items()
    assert "hydra" not in job.config and "${" not in job.text
    assert not list(tmp_path.iterdir()), "composing leaves nothing behind"


def test_an_emulators_file_sets_what_suits_it_and_the_command_line_has_the_last_word(one):
    config = one("steps=77", "algorithm.clip_range=0.5", "emulator=catch")
    assert config["total_steps"] == 50000
    assert config["steps"] == 77 and config["algorithm"]["clip_range"] == 0.5


def test_the_name_becomes_a_folders_name(one):
    assert one("emulator=gymnasium", "emulator.id=ALE/Pong-v5")["run_dir"] == "runs/ALE-Pong-v5/1"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["totl_steps=3"], "unknown key 'totl_steps' (did you mean 'total_steps'?)"),
        (["steps=abc"], "'abc' of type 'str' could not be converted to Integer"),
        (["emulator=ctach"], "Could not find 'emulator/ctach'"),
        (["emulator=catch", "emulator.rwos=3"], "unknown key 'emulator.rwos' (did you mean 'emulator.rows'?)"),
        (["emulator=catch", "model.hidden=[4]"], "'model.hidden' is no key of the chosen option: "),
        (["emulator=catch", "+emulator.rwos=3"], "unknown key emulator.rwos (did you mean 'rows'?); mpirl.emulators"),
        (["emulator=gymnasium"], "emulator.id is missing: add emulator.id=VALUE"),
        (["emulator=catch", "trial=${nothing}"], "Interpolation key 'nothing' not found"),
        (["program=trian"], "program='trian' (did you mean 'train'?): choose one of train, evaluate"),
    ],
)
def test_mistakes_are_told_in_one_message(refused, arguments, message):
    messages = refused(*arguments)
    assert messages.count(message) == 1, messages


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("total_steps", 0, "total_steps=0: write 1 or more"),
        ("seed", -1, "seed=-1: write 0 or more"),
        ("ranks", 1, "ranks=1: write 2 or more"),
        ("checkpoint.keep", 0, "checkpoint.keep=0: write 1 or more"),
        ("evaluation.episodes", 0, "evaluation.episodes=0: write 1 or more"),
        ("deadline", 0.0, "deadline=0.0: write a number of seconds above 0"),
        ("max_time", -5.0, "max_time=-5.0: write a number of seconds above 0"),
        ("max_time", float("nan"), "max_time=nan: write a number of seconds above 0"),
        ("emulator.rows", "ten", "emulator.rows='ten' is of type str, wanted int"),
        ("emulator.num_lanes", 3, "unknown key emulator.num_lanes"),
        ("emulator._target_", "no_such.Game", "emulator._target_='no_such.Game': no module 'no_such'"),
        ("emulator", None, "config node 'emulator' needs a '_target_' key"),
        ("algorithm.epochs", 2.5, "algorithm.epochs=2.5 is of type float, wanted int"),
        ("algorithm.gama", 0.9, r"unknown key algorithm.gama \(did you mean 'gamma'\?\)"),
        ("model.hiden", [4], r"unknown key model.hiden \(did you mean 'hidden'\?\)"),
    ],
)
def test_values_that_no_run_can_have_are_refused(good, key, value, message):
    config = copy.deepcopy(good)
    check(config)
    *path, last = key.split(".")
    node = config
    for part in path:
        node = node[part]
    node[last] = value
    with pytest.raises(UserError, match=message):
        check(config)


def test_a_users_own_config_folder_and_class_work(one, tmp_path, monkeypatch):
    (tmp_path / "my_configs" / "emulator").mkdir(parents=True)
    (tmp_path / "my_configs" / "emulator" / "my_game.yaml").write_text("_target_: game_of_a_user.Game\nsize: 5\n")
    (tmp_path / "game_of_a_user.py").write_text(GAME)
    monkeypatch.syspath_prepend(tmp_path)
    config = one("--config-dir", "my_configs", "emulator=my_game", "emulator.size=7")
    assert config["emulator"] == {"_target_": "game_of_a_user.Game", "size": 7}
    assert config["run_dir"] == "runs/my_game/1"


def test_a_sweep_over_seeds_makes_a_trial_of_each(jobs):
    found, code, _ = jobs("-m", "emulator=catch", "seed=1,5")
    assert code == 0 and [job.config["run_dir"] for job in found] == ["runs/catch/1", "runs/catch/5"]


def test_other_sweeps_name_the_trial_after_what_was_swept(jobs):
    found, _, _ = jobs("-m", "emulator=catch", "algorithm.gamma=0.9,0.99", "steps=16")
    assert [job.config["trial"] for job in found] == ["algorithm.gamma=0.9", "algorithm.gamma=0.99"]
    assert len({job.config["run_dir"] for job in found}) == 2


def test_a_mistake_in_one_job_of_a_sweep_spares_the_others(jobs):
    found, code, messages = jobs("-m", "emulator=catch", "emulator.rows=6,x")
    assert code == 2 and len(found) == 1 and messages.count("emulator.rows='x' is of type str") == 1


def test_a_resumed_run_has_the_saved_config_with_the_command_lines_changes(one, saved):
    before = saved("runs/catch/mine", trial="mine", steps=6, seed=4)
    changes = ["total_steps=123", "algorithm.gamma=0.25", "model.hidden=[7]"]
    config = one("resume=true", "run_dir=runs/catch/mine", "model=mlp", *changes)
    assert config == {
        **before,
        "resume": True,
        "total_steps": 123,
        "algorithm": {**before["algorithm"], "gamma": 0.25},
        "model": {**before["model"], "hidden": [7]},
    }


def test_resume_auto_resumes_what_there_is_and_starts_what_is_not(one, saved):
    assert one("resume=auto", "emulator=catch", "run_dir=none")["resume"] is False
    saved("run", seed=9)
    config = one("resume=auto", "run_dir=run")
    assert config["resume"] == "auto" and config["seed"] == 9


def test_resume_auto_ends_at_once_where_all_steps_are_done(jobs, one, saved, tmp_path):
    saved("run", total_steps=1000)
    (tmp_path / "run/COMPLETED").write_text("iteration 3, 1024 steps\n")
    found, code, messages = jobs("resume=auto", "run_dir=run")
    assert (found, code) == ([], 0) and "run is complete (iteration 3, 1024 steps): nothing to do" in messages
    assert one("resume=auto", "run_dir=run", "total_steps=2000")["total_steps"] == 2000


def test_a_wrong_resume_is_told_the_choices(refused):
    assert "resume='yes please': choose true, false or auto" in refused("resume='yes please'", "emulator=catch")


def test_rules_of_the_placement_take_any_key_of_the_emulator_and_no_other(one, refused):
    rules = one("emulator=catch", "placement.rules=[{ranks: 1, emulator: {columns: 7}}]")["placement"]["rules"]
    assert rules == [{"ranks": 1, "emulator": {"columns": 7}}]
    message = refused("emulator=catch", "placement.rules=[{ranks: 1, emulator: {colums: 7}}]")
    assert "unknown key placement.rules[0].emulator.colums (did you mean 'columns'?)" in message


def test_a_placement_config_brings_its_rules(one):
    config = one("placement=sticky_first", "placement.lanes_total=8")["placement"]
    assert config["rules"][0]["ranks"] == 1 and config["lanes_total"] == 8


def test_a_saved_run_is_found_by_the_settings_that_named_it(one, saved):
    saved("runs/A-B/3", name="A-B", trial="3", seed=3, steps=7)
    config = one("emulator=catch", "name=A/B", "seed=3", "resume=true")
    assert (config["run_dir"], config["name"], config["steps"], config["seed"]) == ("runs/A-B/3", "A-B", 7, 3)


def test_a_run_that_was_moved_keeps_its_name(one, saved):
    saved("moved", name="elsewhere", trial="mine")
    config = one("program=evaluate", "run_dir=moved", "evaluation.episodes=3")
    assert (config["name"], config["trial"], config["run_dir"], config["program"]) == ("elsewhere", "mine", "moved", "evaluate")
    assert config["evaluation"]["episodes"] == 3


@pytest.mark.parametrize(
    "change, message",
    [
        ("emulator=cartpole", "emulator=cartpole: the run was made with emulator=catch; that cannot change in a saved run"),
        ("model=conv", "model=conv: the run was made with model=mlp"),
        ("+emulator.colour=red", "+emulator.colour=red: the saved run has no key 'emulator.colour'"),
        ("+emulator.rows=ten", "emulator.rows='ten' is of type str, wanted int"),
        ("total_steps=0", "total_steps=0: write 1 or more"),
    ],
)
def test_changes_that_a_saved_run_cannot_take_are_refused(refused, saved, change, message):
    saved("run")
    messages = refused("run_dir=run", "resume=true", change)
    assert message in messages, messages


@pytest.mark.parametrize("arguments", [["resume=true"], ["program=evaluate"]])
def test_a_run_that_is_not_there_is_a_mistake(refused, arguments):
    assert "no run in runs/catch/1" in refused("emulator=catch", *arguments)


@pytest.mark.parametrize("text", ["steps: many\n", "no_such_key: 1\n", "{ half", "[1, 2]\n"])
def test_a_saved_config_that_cannot_be_read_is_named(refused, tmp_path, text):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(text)
    assert "run/config.yaml cannot be read" in refused("resume=true", "run_dir=run")


def test_help_and_the_composed_config_are_shown_without_a_run(jobs):
    for argument in (["--help"], ["--cfg", "job"]):
        found, code, messages = jobs("emulator=catch", *argument)
        assert not found and not code and "total_steps" in messages
