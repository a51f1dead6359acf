"""TensorBoard: what is read back are the tags that people's dashboards know, over environment steps."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mpirl.observers.base import Outcome
from mpirl.observers.tensorboard import TensorBoard

EVALUATION = {"mean_reward": 7.5, "mean_ep_length": 20.0}


def written(directory, *reports, **settings):
    observer = TensorBoard(directory, **settings)
    for report in reports:
        observer.observe(report)
    observer.close(Outcome("finished", ""))


def read(directory):
    """{tag: [(step, value), ...]} of all event files."""
    events = EventAccumulator(str(directory)).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tags_are_those_of_stable_baselines3(tmp_path, make_report):
    written(tmp_path, make_report(1), make_report(2, evaluation=EVALUATION))
    found = read(tmp_path)
    assert found["rollout/ep_rew_mean"] == [(100, 1.25), (200, 2.5)]
    assert found["rollout/ep_len_mean"] == [(100, 9.0), (200, 9.0)]
    assert found["time/fps"] == [(100, 50.0), (200, 50.0)]
    assert found["time/total_timesteps"] == [(100, 100.0), (200, 200.0)]
    assert found["train/value_loss"] == [(100, 0.5), (200, 0.5)]
    assert found["train/approx_kl"] == [(100, pytest.approx(0.01)), (200, pytest.approx(0.01))]
    assert found["eval/mean_reward"] == [(200, 7.5)] and found["eval/mean_ep_length"] == [(200, 20.0)]


def test_seconds_of_the_phases_sum_to_the_iteration(tmp_path, make_report):
    written(tmp_path, make_report(1), make_report(2))
    found = read(tmp_path)
    for number in range(2):
        seconds = {tag: values[number][1] for tag, values in found.items() if tag.startswith("seconds/")}
        assert {"seconds/broadcast", "seconds/collect", "seconds/gather", "seconds/learn", "seconds/archive"} < set(seconds)
        assert seconds.pop("seconds/iteration") == pytest.approx(sum(seconds.values()), rel=1e-5) == 4.4375


def test_version_lag_and_accounts_are_there(tmp_path, make_report):
    written(tmp_path, make_report(3, lag=1))
    found = read(tmp_path)
    assert found["learner/version"] == [(300, 3.0)] and found["learner/lag"] == [(300, 1.0)]
    assert found["accounts/learned"] == [(300, 290.0)] and found["accounts/collected"] == [(300, 300.0)]
    assert found["accounts/dropped"] == found["accounts/dropped_too_old"] == [(300, 10.0)]


def test_before_the_first_episode_there_is_no_mean(tmp_path, make_report):
    written(tmp_path, make_report(1, mean_return=None, mean_length=None))
    assert "rollout/ep_rew_mean" not in read(tmp_path) and "time/fps" in read(tmp_path)


def test_a_resumed_run_replaces_what_was_logged_after_its_checkpoint(tmp_path, make_report):
    written(tmp_path, make_report(1), make_report(2), make_report(3))
    written(tmp_path, make_report(3, fps=99.0), purge_step=201)
    assert read(tmp_path)["time/fps"] == [(100, 50.0), (200, 50.0), (300, 99.0)]
