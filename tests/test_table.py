"""The table of a world: its rows, the bytes that move, the memory that is counted, and what is not known."""

import pytest

from mpirl.plan import make_plan
from mpirl.rankinfo import RankInfo
from mpirl.specs import ArraySpec, Specs
from mpirl.table import describe_world, show_numbers, show_settings, size
from mpirl.trajectory import Layout, Trajectory

EACH = {"lanes_per_worker": 4}
LAYOUT = Layout(Specs({"observation": ArraySpec((84, 84), "uint8")}, ArraySpec((), "int64", num_values=6)), 128, context=3)
WEIGHTS = 1_000_000
LANE = sum(array.nbytes for array in Trajectory.allocate(LAYOUT, 1).values())


def world(hosts, cores=4, settings=EACH):
    """A plan with a rank on each of `hosts`."""
    return make_plan([RankInfo(rank, host, tuple(range(cores)), cores) for rank, host in enumerate(hosts)], settings)


def described(plan, **settings):
    return describe_world(plan, LAYOUT, WEIGHTS, **settings)


def rows(text):
    """The cells of every line, by what stands first in it."""
    lines = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in text.splitlines() if line]
    return {cells[0]: cells for cells in lines}


def test_ranks_of_a_host_that_are_alike_are_one_row():
    found = rows(described(world(["a", "b", "b", "b", "c"])))
    assert found["rank"] == ["rank", "host", "role", "lanes", "cores", "threads", "GPU", "weights", "trajectories"]
    assert found["0"] == ["0", "a", "learner", "-", "4", "4", "auto", "-", "-"]
    assert found["1-3"] == ["1-3", "b", "worker", "4", "4", "1", "none", size(4 * WEIGHTS), size(4 * LANE)]
    assert found["4"][:6] == ["4", "c", "worker", "4", "4", "1"]
    assert "2" not in found and "3" not in found


def test_a_rank_that_differs_has_its_own_row_with_what_differs():
    rules = [{"ranks": 2, "lanes": 7, "gpus": [1], "emulator": {"speed": 2, "world": {"rain": True}}}]
    found = rows(described(world(["a", "b", "b", "b"], settings={**EACH, "rules": rules})))
    assert found["rank"][-1] == "emulator"
    assert found["2"][2:4] == ["worker", "7"] and found["2"][6] == "1"
    assert found["2"][-1] == "speed=2, world.rain=True"
    assert found["1"][6] == found["3"][6] == "none"


def test_bound_ranks_show_their_cores():
    text = described(world(["a", "a", "a"], settings={**EACH, "bind": "cores"}))
    assert "2 (bound: 0-1)" in text and "1 (bound: 2)" in text and "1 (bound: 3)" in text


def test_what_nobody_knows_is_a_question_mark():
    plan = make_plan([RankInfo(0, "a", (0,), 1), RankInfo(1, "b", (), 0), RankInfo(2, "b", (), 0)], EACH)
    found = rows(described(plan, threads_known=[True, False, False]))
    assert found["0"][4:6] == ["1", "1"] and found["1-2"][4:6] == ["?", "?"]


def test_the_bytes_of_an_iteration_are_those_of_the_arrays_that_travel():
    found = rows(described(world(["a", "a", "b", "b", "c", "c"])))
    down, up = 4 * WEIGHTS, 4 * LANE
    assert found["a (rank 0's own, no network)"][1:] == ["1", size(down), size(up)]
    assert found["b .. c (2 hosts, each)"][1:] == ["2", size(2 * down), size(2 * up)]
    assert found["network in total"][1:] == ["4", size(4 * down), size(4 * up)]
    seconds = (down + 4 * up) / (1e9 / 8)
    assert f"a's link carries all trajectories and the weights at least once: {seconds:.2g} s at 1 Gbit/s" in found


def test_a_world_on_one_host_uses_no_network():
    text = described(world(["a", "a"]))
    assert "network in total" not in text and "Gbit" not in text


def test_the_batch_is_counted_in_lanes_and_steps():
    first = described(world(["a", "b", "c"])).splitlines()[0]
    assert first == "3 ranks on 3 hosts, 8 lanes x 128 steps = a batch of 1,024 steps, 1,000,000 weights"


@pytest.mark.parametrize(
    "device, host, gpu",
    [
        ("cpu", 2 * 8 * LANE + 5 * 4 * WEIGHTS, None),
        ("cuda:0", 2 * 8 * LANE + 2 * 4 * WEIGHTS, 8 * LANE + 4 * 4 * WEIGHTS),
    ],
)
def test_rank_0_holds_the_batch_the_archives_copies_and_what_learning_needs(device, host, gpu):
    memory = [line for line in described(world(["a", "b", "c"]), device=device).splitlines() if line.startswith("memory of")]
    assert len(memory) == (1 if gpu is None else 2)
    assert f": {size(host)} = " in memory[0] and "its copy for the archive" in memory[0]
    assert gpu is None or f": {size(gpu)} = " in memory[1]


def test_without_an_archive_nothing_is_kept_for_it():
    text = described(world(["a", "b"]), archived=False)
    assert "archive" not in text and "memory of rank 0: " in text and "memory of that GPU: " in text, "auto shows both cases"


def test_warnings_come_last():
    plan = world(["a", "b", "c"], settings={**EACH, "lanes": [0, 3]})
    lines = described(plan, title="the title", notes=["mind the gap"]).splitlines()
    assert lines[0] == "the title"
    assert lines[-2].startswith("warning: no lanes on rank") and lines[-1] == "warning: mind the gap"


def test_hundreds_of_hosts_stay_one_line_each_and_one_link():
    text = described(world(["a"] + [f"n{number}" for number in range(300) for _ in range(4)]))
    assert len(text.splitlines()) < 300 + 20
    assert "n0 .. n299 (300 hosts, each)" in text


def test_numbers_sizes_and_settings_in_words():
    assert show_numbers([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"
    assert [size(number) for number in (0, 999, 1000, 60_432, 999_600, 6_750_876, 2.5e9, 3e12, 4e15)] == [
        *("0 B", "999 B", "1 kB", "60.4 kB", "1 MB", "6.75 MB", "2.5 GB", "3 TB", "4000 TB")
    ]
    assert show_settings({"a": 1, "b": {"c": {"d": 2}, "e": {}}}) == "a=1, b.c.d=2, b.e={}"
