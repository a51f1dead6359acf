"""The command `video`: an episode played again at full resolution, as a film."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from mpirl.archive.reader import Segment
from mpirl.build import TARGET, locate
from mpirl.emulators.base import EmulatorBatch, Frame
from mpirl.errors import UserError
from mpirl.progress import Progress
from mpirl.reemulation import Emulators, is_possible
from mpirl.replay_episodes import Row, archive_of, row_of
from mpirl.replay_output import add_output, check_output, whole
from mpirl.replay_steps import Steps, read_steps
from mpirl.stretches import LaneIteration, Stretch, survey
from mpirl.video import SUFFIXES, Curves, check_installed, encode, enlargement, framed

STEPS_PER_SECOND = 15.0  # where the emulator does not say


class Diverged(RuntimeError):
    """The emulator does not do what it did when the archive was written."""


def add_to(commands: Any) -> None:
    """Add this command to the program's."""
    parser = commands.add_parser("video", help="an episode as a film, with reward and value underneath")
    parser.add_argument("id", type=int, metavar="ID")
    add_output(parser, "FILE.mp4|FILE.gif", required=True)
    parser.add_argument("--fps", type=float, metavar="N", help="steps shown per second (default: as a human would play)")
    parser.add_argument("--scale", type=int, metavar="N", help="pixels per pixel (default: small pictures are enlarged)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """The exit code."""
    for name, value, most in (("fps", options.fps, 240), ("scale", options.scale, 20)):
        if value is not None and not 0 < value <= most:
            raise UserError(f"--{name} {value}: write a number above 0, at most {most}")
    check_output(options, SUFFIXES)
    check_installed(options.output)
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame draws into memory and needs no screen
    archive = archive_of(options.archive)
    row = row_of(archive, options.id)
    stretch, steps = find_stretch(archive, row["id"]), read_steps(archive, row)
    try:
        with Emulators(render_settings) as emulators, closing(Progress(stretch.steps, "steps")) as progress:
            with Segment(stretch.pieces[0].path) as segment:
                emulator = emulators.like(segment, stretch.lane)
            fps = options.fps or getattr(emulator, "steps_per_second", None) or STEPS_PER_SECOND
            with whole(options.output) as path:
                encode(film(pictures(emulator, stretch, row, progress), row, steps, options.scale), path, fps)
    except Diverged as error:
        print(f"mpirl: {error}; `verify --episodes {row['id']}` tells more", file=sys.stderr)
        return 1
    print(f"{options.output}: episode {row['id']}, {row['length'] + 1} pictures, {fps:g} per second")
    return 0


def render_settings(node: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the emulator's class wants to be other to make pictures, from its attribute `render_settings`."""
    return getattr(locate(node[TARGET], "emulator"), "render_settings", {})


def find_stretch(archive: Path, id: int) -> Stretch:
    """From the last seed point at or before an episode's beginning on."""
    found = survey(archive, longest=0)
    for stretch in found.stretches:
        if id in stretch.ids and id not in found.unplayable_ids:
            return stretch
    raise UserError(f"episode {id} cannot be played again: {found.unplayable_ids.get(id, 'it has no seed point')}")


def pictures(emulator: EmulatorBatch, stretch: Stretch, row: Row, progress: Progress) -> Iterator[np.ndarray]:
    """The pictures of one episode, uint8 [height, width, 3], one for each observation. Raises Diverged."""
    frame, is_first = Frame.allocate(emulator.specs, 1), True
    for part in stretch.iterations(("action", "seed", "episode", "step_type", "reward")):
        action, seed, episode = (part.arrays[name] for name in ("action", "seed", "episode"))
        if is_first:
            emulator.reset(seed[part.start : part.start + 1], frame)
            if episode[part.start] == row["id"]:
                yield picture_of(emulator, row)
            is_first = False
        for t in range(part.start, part.stop):
            if not is_possible(action[t], emulator.specs.action):
                raise Diverged(f"the emulator has no action {action[t]}, which iteration {part.iteration} has at t = {t}")
            emulator.step(action[t : t + 1], seed[t + 1 : t + 2], frame)
            check(part, t, frame)
            if episode[t + 1] > row["id"]:
                return
            if episode[t + 1] == row["id"]:
                yield picture_of(emulator, row)
        progress.add(part.stop - part.start)


def check(part: LaneIteration, t: int, frame: Frame) -> None:
    """Raise Diverged if action t did not lead to what it led to when the archive was written."""
    is_same = frame.step_type[0] == part.arrays["step_type"][t + 1]
    if not is_same or "reward" in part.arrays and frame.reward[0] != part.arrays["reward"][t]:
        raise Diverged(f"played again, the episode is another from iteration {part.iteration}, t = {t} on")


def picture_of(emulator: EmulatorBatch, row: Row) -> np.ndarray:
    picture = emulator.render(0)
    if picture is None:
        raise UserError(f"{row['emulator']} makes no pictures: give it a render() that returns uint8 [height, width, 3]")
    return picture


def film(shots: Iterator[np.ndarray], row: Row, steps: Steps, scale: int | None) -> Iterator[np.ndarray]:
    """The pictures with the curves underneath."""
    panel, total = None, 0.0
    reward = np.append(steps.by_step["reward"], np.nan)  # after the last observation there is none
    curves = {"reward": reward}
    value = steps.by_observation.get("value")
    if value is not None and value.ndim == 1 and np.isfinite(value).any():
        curves["value"] = value
    for t, shot in enumerate(shots):
        picture = framed(shot, scale or enlargement(shot))
        panel = panel or Curves(curves, picture.shape[1])
        total += reward[t - 1] if t else 0.0
        words = [f"episode {row['id']}", f"step {t}", f"return {total:g}"]
        words += [f"value {curves['value'][t]:.3g}"] if "value" in curves else []
        yield np.concatenate([picture, panel.at(t, "   ".join(words))])
