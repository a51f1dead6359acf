"""Specs, the field table and seeds: written down once, and used by everybody."""

import itertools

import numpy as np
import pytest

from mpirl import seeds
from mpirl.errors import UserError
from mpirl.specs import ArraySpec, Specs, StepType, observation_fields
from mpirl.trajectory import Layout, Trajectory, is_step

ACTION = ArraySpec((), "int64", num_values=3)
SPECS = Specs({"observation.camera": ArraySpec((4, 5), "uint8"), "observation.speed": ArraySpec((), "float32")}, ACTION)


def test_array_specs_are_normalised_and_comparable():
    spec = ArraySpec([np.int64(2), 3], np.float32)
    assert spec == ArraySpec((2, 3), "float32") and spec.nbytes == 24 and not spec.is_discrete and not spec.is_integer
    assert ACTION.is_discrete and ACTION.is_integer and ACTION.nbytes == 8


@pytest.mark.parametrize("shape, dtype, num_values", [((2,), "int64", 3), ((), "float32", 3), ((), "int64", 0)])
def test_a_discrete_spec_is_a_single_integer(shape, dtype, num_values):
    with pytest.raises(UserError, match="a discrete ArraySpec needs shape"):
        ArraySpec(shape, dtype, num_values)


def test_observation_fields_are_named_observation():
    with pytest.raises(UserError, match="'camera': write 'observation' or 'observation.<key>'"):
        Specs({"camera": ACTION}, ACTION)
    with pytest.raises(UserError, match="at least one observation"):
        Specs({}, ACTION)


def test_nested_observations_flatten_to_fields():
    assert observation_fields(3) == {"observation": 3}
    assert observation_fields({"a": 1, "b": {"c": 2}}) == {"observation.a": 1, "observation.b.c": 2}


def test_the_table_gives_every_field_its_shape_and_dtype():
    extras = {"value": ArraySpec((), "float32")}
    layout = Layout(Specs(SPECS.observation, ArraySpec((2,), "float32"), {"lives": ArraySpec((), "int32")}), 6, 3, 8, extras)
    table = {name: (field.shape, field.dtype) for name, field in layout.table().items()}
    assert table == {
        "observation.camera": ((10, 4, 5), "uint8"),
        "observation.speed": ((10,), "float32"),
        "step_type": ((7,), "uint8"),
        "action": ((6, 2), "float32"),
        "log_prob": ((6,), "float32"),
        "reward": ((6,), "float32"),
        "discount": ((6,), "float32"),
        "core": ((8,), "float32"),
        "episode": ((7,), "int64"),
        "seed": ((7,), "int64"),
        "version": ((), "int64"),
        "collected": ((), "int64"),
        "lives": ((7,), "int32"),
        "value": ((7,), "float32"),
    }


@pytest.mark.parametrize("num_lanes", [0, 1, 5])
def test_a_trajectory_is_allocated_from_the_table(num_lanes):
    layout = Layout(SPECS, steps=2, context=1)
    trajectory = Trajectory.allocate(layout, num_lanes)
    assert trajectory.num_lanes == num_lanes and list(trajectory) == list(layout.table())
    assert set(trajectory.observation) == set(SPECS.observation)
    assert trajectory.nbytes == num_lanes * sum(field.nbytes for field in layout.table().values())


def test_arrays_that_differ_from_the_table_are_refused():
    layout = Layout(SPECS, steps=2)
    good = dict(Trajectory.allocate(layout, 4))
    Trajectory(layout, good)
    for bad in (np.zeros((4, 3), np.float32), np.zeros((4, 2)), np.zeros((2, 4), np.float32).T):
        with pytest.raises(AssertionError, match="reward"):
            Trajectory(layout, {**good, "reward": bad})


def test_seams_are_no_steps():
    first, mid, last = StepType.FIRST, StepType.MID, StepType.LAST
    kinds = np.array([[first, mid, last, first, last], [last, first, last, first, mid]], np.uint8)
    np.testing.assert_array_equal(is_step(kinds), [[True, True, False, True], [False, True, False, True]])


def test_seeds_are_functions_of_what_they_belong_to():
    assert seeds.episode_seed(1, 5) == seeds.episode_seed(1, 5)
    found = {seeds.episode_seed(run, episode, stream) for run in range(3) for episode in range(50) for stream in (0, 2, 4)}
    assert len(found) == 450 and 0 <= min(found) and max(found) < 2**31
    draw = lambda *key: seeds.generator(*key).random()
    assert draw(1, seeds.ACTION, 2, 3) == draw(1, seeds.ACTION, 2, 3)
    keys = list(itertools.product((0, 1), (seeds.ACTION, seeds.LEARNING), range(4), range(4)))
    assert len({draw(*key) for key in keys}) == len(keys)
