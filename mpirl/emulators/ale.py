"""Atari: a batch of lanes of one game, stepped and preprocessed by ale-py's AtariVectorEnv in C++."""

from __future__ import annotations

import difflib
import re
from typing import Any

import numpy as np

from mpirl.emulators.base import EmulatorBatch, Frame
from mpirl.errors import UserError
from mpirl.specs import ArraySpec, Specs, StepType
from mpirl.trajectory import NO_SEED

FIRST, MID, LAST = int(StepType.FIRST), int(StepType.MID), int(StepType.LAST)  # numpy takes longer with an IntEnum
NOOP = 0  # in the minimal and in the full action set


class AtariLanes(EmulatorBatch):
    """N lanes of an Atari game. A step is `frame_skip` frames, the observation the maximum of the last two.

    Observation: uint8 [height, width], or [height, width, 3] with `grayscale` off. Rewards are the raw score.

    game: as in `pong`, `SpaceInvaders` or `space_invaders`.
    repeat_action_probability: that a frame repeats the frame before's action ("sticky actions").
    full_action_space: all 18 actions; off, those that the game knows.
    noop_max: an episode starts with fewer than this many frames without action, drawn at random.
    use_fire_reset: FIRE is pressed once at the start of an episode, in games that have it.
    life_loss: with every observation comes `lives`, int32, for algorithms that treat a lost life as an end.
    max_episode_frames: an episode is truncated after this many frames.
    reseed_every: seeding loads the ROM again (90 ms; an episode's start takes 5 ms), so it is done once in a while.
    num_threads: that step the lanes of this rank.
    """

    render_settings = {"height": 210, "width": 160, "grayscale": False}
    """Settings with which the same game, from the same seed and actions, gives pictures at full resolution."""

    def __init__(
        self,
        num_lanes: int,
        game: str,
        *,
        repeat_action_probability: float,
        full_action_space: bool,
        noop_max: int,
        use_fire_reset: bool,
        life_loss: bool,
        frame_skip: int = 4,
        max_episode_frames: int = 108_000,
        height: int = 84,
        width: int = 84,
        grayscale: bool = True,
        reseed_every: int = 32,
        num_threads: int = 1,
    ):
        if not 0.0 <= repeat_action_probability <= 1.0:
            raise UserError(f"emulator.repeat_action_probability={repeat_action_probability}: write a probability, 0 to 1")
        _check_at_least(0, noop_max=noop_max)
        _check_at_least(1, frame_skip=frame_skip, max_episode_frames=max_episode_frames, height=height, width=width)
        _check_at_least(1, reseed_every=reseed_every, num_threads=num_threads)
        self.num_lanes = num_lanes
        self.reseed_every = reseed_every
        self.steps_per_second = 60 / frame_skip  # when a human plays
        self._environment = _make(
            game,
            num_envs=max(num_lanes, 1),  # 0 crashes ale-py, and a rank without lanes needs the specs too
            frameskip=frame_skip,
            repeat_action_probability=repeat_action_probability,
            full_action_space=full_action_space,
            noop_max=noop_max,
            use_fire_reset=use_fire_reset,
            max_num_frames_per_episode=max_episode_frames,
            img_height=height,
            img_width=width,
            grayscale=grayscale,
            num_threads=num_threads,
            stack_num=1,
            reward_clipping=False,  # on by default; it hides the score
            episodic_life=False,  # would restart the whole game at every lost life
        )
        self._num_actions = int(self._environment.single_action_space.n)
        shape = (height, width) if grayscale else (height, width, 3)
        self.specs = Specs(
            observation={"observation": ArraySpec(shape, "uint8", low=0.0, high=255.0)},
            action=ArraySpec((), "int64", num_values=self._num_actions),
            extras={"lives": ArraySpec((), "int32")} if life_loss else {},
        )
        self._tells_lives = life_loss
        if num_lanes == 0:
            self.close()
        self._ended, self._any_ended = np.zeros(num_lanes, bool), False
        self._picture: np.ndarray | None = None  # [N, height, width(, 3)]

    def reset(self, seed: np.ndarray, out: Frame) -> None:
        if self.num_lanes == 0:
            return
        observation, info = self._environment.reset(seed=np.asarray(seed, np.int64))
        self._ended, self._any_ended = np.zeros(self.num_lanes, bool), False
        self._write(observation, info, out)
        out.step_type[:], out.reward[:], out.discount[:] = FIRST, 0.0, 1.0

    def step(self, action: np.ndarray, seed: np.ndarray, out: Frame) -> None:
        if self.num_lanes == 0:
            return
        begins, any_begin = self._ended, self._any_ended
        action = np.array(action, np.int64)
        if any_begin:
            action[begins] = NOOP
        # ale-py never returns from a step with an action that the game does not have.
        largest = max(action.view(np.uint64).tolist())  # -1 is huge
        assert largest < self._num_actions, f"actions {action} of {self._num_actions}"
        # Lanes that ended begin a new episode here, by ale-py's own autoreset. It cannot seed: those due for a seed
        # begin once more, which leaves the other lanes as they are.
        observation, reward, terminated, truncated, info = self._environment.step(action)
        if any_begin and (seeded := begins & (np.asarray(seed) != NO_SEED)).any():
            seeds = np.asarray(seed, np.int64)[seeded]
            observation, info = self._environment.reset(seed=seeds, options={"reset_mask": seeded})
        self._write(observation, info, out)
        self._ended = terminated | truncated
        self._any_ended = np.count_nonzero(self._ended) > 0
        out.step_type[:], out.reward[:], out.discount[:] = MID, reward, 1.0
        if self._any_ended:
            out.step_type[self._ended], out.discount[terminated] = LAST, 0.0
        if any_begin:
            out.step_type[begins], out.reward[begins] = FIRST, 0.0

    def _write(self, observation: np.ndarray, info: dict[str, np.ndarray], out: Frame) -> None:
        self._picture = observation[:, 0]  # [N, 1, height, width(, 3)] is a stack of one
        out.observation["observation"][:] = self._picture
        if self._tells_lives:
            out.extras["lives"][:] = info["lives"]

    def render(self, lane: int) -> np.ndarray | None:
        if self._picture is None:
            return None
        picture = self._picture[lane]
        return picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=-1)

    def close(self) -> None:
        self._environment = None  # its threads end when it is freed


def _check_at_least(least: int, **settings: int) -> None:
    for name, value in settings.items():
        if not isinstance(value, int) or value < least:
            raise UserError(f"emulator.{name}={value}: write a whole number, at least {least}")


def _make(game: str, **settings: Any) -> Any:
    try:
        from ale_py.roms import get_all_rom_ids
        from ale_py.vector_env import AtariVectorEnv
    except ImportError as error:
        raise UserError(f"the Atari emulator needs ale-py ({error}): pip install 'mpirl[atari]'") from error
    return AtariVectorEnv(_rom(game, get_all_rom_ids()), **settings)


def _rom(game: str, known: list[str]) -> str:
    """The ROM's name of a game in any spelling: Pong, SpaceInvaders, space_invaders, space-invaders."""
    names = {_letters(name): name for name in known}
    if _letters(game) in names:
        return names[_letters(game)]
    close = [names[match] for match in difflib.get_close_matches(_letters(game), names)]
    hint = f"close names: {', '.join(close)}" if close else f"known games: {', '.join(sorted(known))}"
    raise UserError(f"emulator.game={game}: no such Atari game; {hint}")


def _letters(name: str) -> str:
    return re.sub("[^a-z0-9]", "", str(name).lower())
