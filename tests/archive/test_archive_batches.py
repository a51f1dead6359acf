"""Batches from archives: every window once in an epoch, within bounded memory, in an order that only the seed decides."""

import threading

import numpy as np
import pytest
from recorded import record

from mpirl.archive import batches as batches_module
from mpirl.archive.batches import Batches
from mpirl.archive.shuffle import Load, shuffled
from mpirl.archive.survey import survey
from mpirl.archive.windows import EXTRAS, Purpose, Use, find_windows
from mpirl.errors import UserError
from mpirl.trajectory import Layout

COUNTS = [3, 1, 4, 1, 5, 2, 6, 5, 3, 5]


@pytest.mark.parametrize("num_slots", [10, 13, 40])
def test_every_window_is_taken_once_and_the_buffer_never_overflows(num_slots):
    held, taken, sizes = {}, [], []
    for event in shuffled(COUNTS, num_slots, 4, np.random.default_rng(0)):
        if isinstance(event, Load):
            assert not held.keys() & set(event.slots) and len(event.slots) == COUNTS[event.unit]
            held.update({slot: (event.unit, which) for which, slot in enumerate(event.slots)})
        else:
            sizes.append(len(event.slots))
            taken += [held.pop(slot) for slot in event.slots]
        assert len(held) <= num_slots and max(held, default=0) < num_slots
    assert sorted(taken) == [(unit, which) for unit, count in enumerate(COUNTS) for which in range(count)]
    assert set(sizes[:-1]) == {4} and not held


def test_a_larger_buffer_shuffles_further():
    def distance(num_slots):
        """How far windows of a unit come apart, in batches."""
        units = [0] * 200
        held, batch_of, number = {}, {}, 0
        for event in shuffled([4] * len(units), num_slots, 4, np.random.default_rng(0)):
            if isinstance(event, Load):
                held.update({slot: event.unit for slot in event.slots})
            else:
                for slot in event.slots:
                    batch_of.setdefault(held.pop(slot), []).append(number)
                number += 1
        return np.mean([max(numbers) - min(numbers) for numbers in batch_of.values()])

    assert distance(8) < distance(40) < distance(160)


@pytest.fixture
def stream(tmp_path):
    """stream(**settings): the batches of an archive; all are closed at the end."""
    record(tmp_path / "a", iterations=14, lanes=3)
    record(tmp_path / "b", iterations=6, lanes=2, steps=7)
    opened = []

    def open_stream(seed=0, lanes=6, buffer=12, epoch=0, number=0, **purpose):
        found = survey([str(tmp_path / "a"), str(tmp_path / "b")])
        windows = find_windows(found, Purpose(**purpose))
        layout = Layout(found.specs, found.steps, windows.purpose.context, extras=EXTRAS)
        opened.append(Batches(windows, layout, lanes, buffer, seed, epoch, number))
        return opened[-1]

    yield open_stream
    for one in opened:
        one.close()


def steps_of(batch, use):
    """(archive's row or episode, age) of the steps of a use."""
    there = batch.arrays["use"][:, :-1] == use
    return [tuple(pair) for pair in batch.arrays["observation"][:, :-1][there].tolist()]


def epoch_of(stream):
    return [stream.take() for _ in range(stream.per_epoch)]


def test_an_epoch_has_every_training_step_once_and_no_other(stream):
    opened = stream(validation=0.25)
    totals = opened._windows.totals
    for epoch in range(3):
        batches = epoch_of(opened)
        assert [(batch.epoch, batch.number) for batch in batches] == [(epoch, number) for number in range(len(batches))]
        for use in (Use.TRAINING, Use.VALIDATION):
            steps = [(batch.arrays["row"][lane, t], *batch.arrays["observation"][lane, t]) for batch in batches
                     for lane, t in np.argwhere(batch.arrays["use"][:, :-1] == use)]
            assert len(steps) == totals[use] > 0
            finished = [step for step in steps if step[0] >= 0]
            assert len(set(finished)) == len(finished), "no step comes twice"
        learned = {number for batch in batches for number, _ in steps_of(batch, Use.TRAINING)}
        held_out = {number for batch in batches for number, _ in steps_of(batch, Use.VALIDATION)}
        assert not learned & held_out


def test_the_seed_alone_decides_the_order(stream):
    first, again, other = (epoch_of(stream(seed=seed)) for seed in (1, 1, 2))
    for one, two in zip(first, again):
        for name in one.arrays:
            np.testing.assert_array_equal(one.arrays[name], two.arrays[name])
    assert any(not np.array_equal(one.arrays["action"], two.arrays["action"]) for one, two in zip(first, other))


def test_epochs_differ_in_their_order(stream):
    opened = stream()
    one, two = epoch_of(opened), epoch_of(opened)
    assert not np.array_equal(one[0].arrays["action"], two[0].arrays["action"])


@pytest.mark.parametrize("number", [1, 3, 5])
def test_a_stream_that_begins_in_the_middle_goes_on_as_the_whole_one(stream, number):
    whole = stream(seed=3)
    expected = epoch_of(whole) + epoch_of(whole)
    resumed = stream(seed=3, number=number)
    for batch in expected[number:]:
        found = resumed.take()
        assert (found.epoch, found.number) == (batch.epoch, batch.number)
        live = batch.arrays["use"] != Use.SEAM  # what lies between episodes has no meaning
        assert np.array_equal(found.arrays["use"], batch.arrays["use"])
        assert np.array_equal(found.arrays["observation"][live], batch.arrays["observation"][live])


def test_memory_is_bounded_by_the_buffer_and_a_few_batches(stream, monkeypatch):
    made, take_out = [], Batches._take_out
    monkeypatch.setattr(Batches, "_take_out", lambda self, slots: made.append(1) or take_out(self, slots))
    opened = stream(lanes=2, buffer=10)
    assert opened.slots.num_lanes == 10
    for taken in range(1, 8):
        opened.take()
        assert len(made) <= taken + 2, "one waits, one is being made"


def test_a_buffer_too_small_for_a_batch_is_enlarged(stream):
    assert stream(lanes=6, buffer=0).slots.num_lanes == 6 + 4, "a batch, and an iteration of 2 lanes in 2 pieces"


def test_what_the_reading_thread_meets_is_raised_where_batches_are_taken(stream, tmp_path, monkeypatch):
    monkeypatch.setattr(batches_module, "OPEN_SEGMENTS", 1)
    opened = stream(lanes=2, buffer=4)
    for path in tmp_path.glob("*/*.h5"):
        path.unlink()
    with pytest.raises(UserError, match="not a segment"):
        for _ in range(opened.per_epoch):
            opened.take()


def test_a_closed_stream_leaves_no_thread(stream):
    opened = stream()
    opened.take()
    opened.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "archive reader"]
