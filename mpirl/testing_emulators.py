"""The conformance kit of emulators: streams of seeded actions, played in several lanes, must lead to the same frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mpirl.emulators.base import EmulatorBatch, Frame
from mpirl.emulators.lanes import EmulatorLanes
from mpirl.seeds import episode_seed
from mpirl.specs import ArraySpec, Specs, StepType
from mpirl.trajectory import NO_SEED, Layout


class Take:
    """What one lane returned while it played one stream: bytes and numbers by name, per frame."""

    def __init__(self, where: str):
        self.where = where
        self.frames: list[dict[str, Any]] = []


Takes = dict[int, list[Take]]  # by stream


def make_batch(make: Callable[[], Any]) -> EmulatorBatch:
    """A batch from a maker of batches or of single emulators."""
    first = make()
    if not hasattr(first, "num_lanes"):
        if hasattr(first, "reset"):
            assert not isinstance(first.reset(0), tuple), "reset returned a tuple: return the observation alone"
        getattr(first, "close", lambda: None)()
        first = EmulatorLanes(make, 3)
    assert first.num_lanes >= 1, f"a batch of {first.num_lanes} lanes cannot be played: make one of 2 or more"
    assert isinstance(first.specs, Specs), f"specs is a {type(first.specs).__name__}: make it a mpirl.specs.Specs"
    assert first.reseed_every >= 1, f"reseed_every is {first.reseed_every}, must be 1 or more"
    Layout(first.specs, steps=1).table()
    return first


def sample_action(spec: ArraySpec, random: np.random.Generator) -> np.ndarray:
    """A random action; of continuous ones, some exceed the bounds."""
    if spec.is_discrete:
        return random.integers(spec.num_values, dtype=np.int64).astype(spec.dtype)
    if spec.is_integer:
        low, high = (0 if spec.low is None else spec.low), (1 if spec.high is None else spec.high)
        return random.integers(np.broadcast_to(low, spec.shape), high, endpoint=True).astype(spec.dtype)
    low, high = (-1.0 if spec.low is None else spec.low), (1.0 if spec.high is None else spec.high)
    low, high = np.maximum(low, -10.0), np.minimum(high, 10.0)  # bounds may be infinite
    return (low + (high - low) * random.uniform(-0.25, 1.25, spec.shape)).astype(spec.dtype)


class Play:
    """One go at a batch, from a reset of all lanes until each has played `streams` streams of `episodes` episodes.

    Stream s is a seed and a sequence of actions; lane j starts with stream j + shift. What each stream led to is
    appended to `takes`. All that must have no influence is drawn anew from `shift`.
    """

    def __init__(self, batch: EmulatorBatch, takes: Takes, *, streams: int, episodes: int, shift: int, max_steps: int):
        self.batch, self.takes = batch, takes
        self.streams, self.episodes, self.shift, self.max_steps = streams, episodes, shift, max_steps
        self.whim = np.random.default_rng(shift)

    def run(self) -> None:
        players = [Player(self, lane) for lane in range(self.batch.num_lanes)]
        canvas = Canvas(self.batch.specs, self.batch.num_lanes)
        canvas.scribble(self.whim)
        self.batch.reset(np.array([player.seed(0) for player in players], np.int64), canvas.frame)
        tick = 0
        while True:
            canvas.check()
            for player in players:
                player.see(canvas.frame, tick)
            if all(player.is_done for player in players):
                return
            tick += 1
            action = np.stack([player.action() for player in players])
            seed = np.array([player.seed(tick) for player in players], np.int64)
            canvas.scribble(self.whim)
            self.batch.step(action, seed, canvas.frame)


class Player:
    """Acts in one lane, checks each frame and notes it down."""

    def __init__(self, play: Play, lane: int):
        self._play, self._lane, self._specs = play, lane, play.batch.specs
        self._streams = self._episodes = self._steps = 0  # begun, ended in this stream, taken in this episode
        self._ended = True
        self.is_done = False

    def seed(self, tick: int) -> int:
        """The seed for this tick: of a new stream, NO_SEED within a stream, and anything where it must be ignored."""
        if not self._ended:
            return int(self._play.whim.integers(2**31))
        if self._streams and self._episodes < self._play.episodes:
            return NO_SEED
        stream = (self._lane + self._play.shift + self._streams) % self._play.batch.num_lanes
        self._streams, self._episodes = self._streams + 1, 0
        self._random = np.random.default_rng(stream)
        self._take = Take(f"lane {self._lane} from tick {tick} of play {self._play.shift}")
        self._play.takes.setdefault(stream, []).append(self._take)
        return episode_seed(0, stream)

    def action(self) -> np.ndarray:
        return sample_action(self._specs.action, self._play.whim if self._ended else self._random)

    def see(self, frame: Frame, tick: int) -> None:
        place = f"lane {self._lane}, tick {tick}"
        step_type, reward, discount = (array[self._lane].item() for array in (frame.step_type, frame.reward, frame.discount))
        check_moment(step_type, reward, discount, self._ended, place)
        arrays = {name: array[self._lane] for name, array in {**frame.observation, **frame.extras}.items()}
        for name, spec in {**self._specs.observation, **self._specs.extras}.items():
            check_bounds(arrays[name], spec, f"{place}: {name}")
        note = {"step_type": step_type, "reward": reward, "discount": discount}
        self._take.frames.append(note | {name: array.tobytes() for name, array in arrays.items()})
        self._count(step_type == StepType.LAST, place)

    def _count(self, is_last: bool, place: str) -> None:
        self._steps = 0 if self._ended else self._steps + 1
        assert is_last or self._steps < self._play.max_steps, (
            f"{place}: an episode has not ended after {self._steps} steps: end it, or raise max_steps"
        )
        self._ended = is_last
        self._episodes += is_last
        self.is_done |= self._streams >= self._play.streams and self._episodes >= self._play.episodes


class Canvas:
    """A frame whose arrays are strided views into larger ones, like a trajectory's, to see what a batch writes."""

    def __init__(self, specs: Specs, num_lanes: int):
        tables = Layout(specs, steps=2).table()
        names = [*specs.observation, "step_type", "reward", "discount", *specs.extras]
        self._whole = {name: np.zeros((num_lanes, 3, *tables[name].shape[1:]), tables[name].dtype) for name in names}
        views = {name: array[:, 1] for name, array in self._whole.items()}
        observation = {name: views[name] for name in specs.observation}
        extras = {name: views[name] for name in specs.extras}
        self.frame = Frame(observation, views["step_type"], views["reward"], views["discount"], extras)
        self._views = views

    def scribble(self, whim: np.random.Generator) -> None:
        """Fill everything with noise: what is not written will show."""
        for array in self._whole.values():
            array[...] = np.frombuffer(whim.bytes(array.nbytes), array.dtype).reshape(array.shape)
        self._margins = {name: array[:, ::2].tobytes() for name, array in self._whole.items()}

    def check(self) -> None:
        frame = self.frame
        plain = {"step_type": frame.step_type, "reward": frame.reward, "discount": frame.discount}
        for name, array in {**frame.observation, **plain, **frame.extras}.items():
            assert array is self._views[name], f"the frame's {name} was replaced: write into the array that is there"
            assert self._whole[name][:, ::2].tobytes() == self._margins[name], f"{name}: memory around the frame was written"


def check_moment(step_type: int, reward: float, discount: float, begins: bool, place: str) -> None:
    """Check step type, reward and discount of a lane; `begins`: its last frame was LAST, or it was reset."""
    allowed = (StepType.FIRST,) if begins else (StepType.MID, StepType.LAST)
    names, when = " or ".join(member.name for member in allowed), "at a start" if begins else "within an episode"
    assert step_type in allowed, f"{place}: step_type is {step_type}, must be {names} {when}"
    assert np.isfinite(reward), f"{place}: reward is {reward}, must be finite"
    assert step_type != StepType.FIRST or reward == 0.0, f"{place}: reward of a FIRST frame is {reward}, must be 0"
    discounts = (0.0, 1.0) if step_type == StepType.LAST else (1.0,)
    name, values = StepType(step_type).name, " or ".join(map(str, discounts))
    assert discount in discounts, f"{place}: discount of a {name} frame is {discount}, must be {values}"


def check_bounds(array: np.ndarray, spec: ArraySpec, place: str) -> None:
    """Check that the values are finite and within the spec's bounds."""
    if not spec.is_integer and np.dtype(spec.dtype).kind == "f":
        assert np.isfinite(array).all(), f"{place} has values that are not finite"
    low, high = (0, spec.num_values - 1) if spec.num_values is not None else (spec.low, spec.high)
    for bound, exceeds, word in ((low, np.less, "below"), (high, np.greater, "above")):
        if bound is not None:
            limit = np.asarray(bound, array.dtype if np.dtype(spec.dtype).kind == "f" else None)
            is_out = bool(exceeds(array, limit).any())
            assert not is_out, f"{place} has values from {array.min()} to {array.max()}, {word} its spec's {bound}"


def check_same(takes: Mapping[int, list[Take]]) -> None:
    """Check that every take of a stream went like the first one."""
    for first, *others in takes.values():
        for other in others:
            for index, (one, two) in enumerate(zip(first.frames, other.frames)):
                different = [name for name in one if one[name] != two[name]]
                assert not different, (
                    f"same seed and actions, but {', '.join(different)} of frame {index} differ between {first.where} and "
                    f"{other.where}: what follows a seed must depend on the seed and the actions alone"
                )


def check_picture(picture: np.ndarray | None) -> None:
    """Check what `render` returned."""
    if picture is not None:
        assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[-1] == 3, (
            f"render returned {picture.dtype} {list(picture.shape)}, must be uint8 [height, width, 3] or None"
        )
