"""latest: enough of an archive's end to fill a replay buffer, in order, and nothing that does not fit."""

from pathlib import Path

import pytest

from mpirl.archive.latest import latest
from mpirl.archive.writer import SegmentWriter
from mpirl.specs import ArraySpec, Specs
from mpirl.trajectory import Layout, Trajectory

SPECS = Specs({"observation": ArraySpec((2,), "float32")}, ArraySpec((), "int64", num_values=3))
LAYOUT = Layout(SPECS, 5, context=1)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Ten iterations of 2 lanes x 5 steps in segments of three."""
    header = {"config": {}, "seed": 0, "lane_rank": [1, 1], "lane_host": ["a", "a"]}
    writer = SegmentWriter(tmp_path, LAYOUT, header, segment_iterations=3)
    batch = Trajectory.allocate(LAYOUT, 2)
    for iteration in range(1, 11):
        batch["reward"][:] = iteration
        writer.write(iteration, iteration - 1, batch, [])
    writer.close()
    return tmp_path


@pytest.mark.parametrize(("size", "first"), [(1, 9), (10, 9), (11, 8), (30, 7), (41, 5), (89, 1), (90, 1), (1000, 1)])
def test_one_more_iteration_is_read_than_hold_the_size(archive, size, first):
    found = list(latest(archive, size, LAYOUT))
    assert [iteration for iteration, _ in found] == list(range(first, 11))
    assert [batch["reward"].max() for _, batch in found] == list(range(first, 11))


def test_more_context_than_needed_is_fine_and_less_is_not(archive):
    assert len(list(latest(archive, 1000, Layout(SPECS, 7, context=0)))) == 10
    assert not list(latest(archive, 1000, Layout(SPECS, 5, context=3)))


def test_other_specs_do_not_fit(archive):
    other = Specs({"observation": ArraySpec((3,), "float32")}, SPECS.action)
    assert not list(latest(archive, 1000, Layout(other, 5)))


def test_no_archive_holds_nothing(tmp_path):
    assert not list(latest(tmp_path / "none", 10, LAYOUT)) and not list(latest(tmp_path, 10, LAYOUT))
