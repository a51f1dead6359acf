"""TensorBoard logs with Stable-Baselines3's tags; the x axis is environment steps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from mpirl.observers.base import Observer, Outcome, Report


class TensorBoard(Observer):
    """Writes event files to `directory`; what earlier files have from `purge_step` on is void."""

    def __init__(self, directory: Path, purge_step: int | None = None):
        # torch's SummaryWriter would load the drawing of pictures and graphs as well.
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = Event, Summary
        self._writer = EventFileWriter(str(directory), flush_secs=10)
        if purge_step is not None:
            start = SessionLog(status=SessionLog.START)
            self._writer.add_event(Event(wall_time=time.time(), step=purge_step, session_log=start))

    def observe(self, report: Report) -> None:
        # One event for all: its writer's thread takes a checksum of each, in Python, and fast iterations would wait for it.
        values = [self._summary.Value(tag=tag, simple_value=float(value)) for tag, value in scalars(report)]
        self._writer.add_event(self._event(wall_time=time.time(), step=report.steps, summary=self._summary(value=values)))

    def close(self, outcome: Outcome) -> None:
        self._writer.close()


def scalars(report: Report) -> Iterator[tuple[str, float]]:
    """Tags and values of a report."""
    if report.mean_return is not None and report.mean_length is not None:
        yield "rollout/ep_rew_mean", report.mean_return
        yield "rollout/ep_len_mean", report.mean_length
    yield "rollout/episodes", report.num_episodes
    yield "time/fps", report.fps
    yield "time/iterations", report.iteration
    yield "time/time_elapsed", report.elapsed
    yield "time/total_timesteps", report.steps
    for name, value in report.stats.items():
        yield name if "/" in name else f"train/{name}", value
    for name, value in (report.evaluation or {}).items():
        yield f"eval/{name}", value
    for phase, seconds in report.seconds.items():
        yield f"seconds/{phase}", seconds
    yield "learner/version", report.version
    yield "learner/lag", report.lag
    accounts = report.accounts
    for name in ("collected", "gathered", "learned", "archived"):
        yield f"accounts/{name}", getattr(accounts, name)
    for name in ("thinned", "deleted", "dropped"):
        yield f"accounts/{name}", sum(getattr(accounts, name).values())
    for reason, steps in accounts.dropped.items():
        yield f"accounts/dropped_{reason.replace(' ', '_')}", steps
