"""Slurm's compressed lists, and the ranks that srun's block distribution gives each host."""

import pytest

from mpirl.errors import UserError
from mpirl.hostfile import place_ranks
from mpirl.nodelist import expand_nodelist, expand_tasks, slurm_hosts


@pytest.mark.parametrize(
    "text, names",
    [
        ("gpu0", ["gpu0"]),
        ("cpu[1-4,7],gpu0", ["cpu1", "cpu2", "cpu3", "cpu4", "cpu7", "gpu0"]),
        ("n[08-11]", ["n08", "n09", "n10", "n11"]),
        ("rack[1-2]n[01-02]", ["rack1n01", "rack1n02", "rack2n01", "rack2n02"]),
        ("a[1,03]-ib, b", ["a1-ib", "a03-ib", "b"]),
    ],
)
def test_node_lists(text, names):
    assert expand_nodelist(text) == names


@pytest.mark.parametrize("text", ["", "cpu[1-4", "cpu1-4]", "cpu[4-1]", "cpu[a-b]", "cpu[]", "a,,b", "a b", "cpu[0-999999999]"])
def test_malformed_node_lists_are_refused(text):
    with pytest.raises(UserError, match=r"node list .*write names as in cpu\[1-4,7\],gpu0"):
        expand_nodelist(text)


@pytest.mark.parametrize("text, counts", [("2(x3),1", [2, 2, 2, 1]), ("1", [1]), ("1,2(x2)", [1, 2, 2])])
def test_tasks_per_node(text, counts):
    assert expand_tasks(text) == counts


@pytest.mark.parametrize("text", ["", "2(x)", "2x3", "-1", "0", "2(x0)"])
def test_malformed_tasks_per_node_are_refused(text):
    with pytest.raises(UserError, match="write numbers as in"):
        expand_tasks(text)


def test_tasks_for_another_number_of_hosts_are_refused():
    with pytest.raises(UserError, match="3 hosts, but 'cpu.1-4.' names 4: mend one"):
        slurm_hosts("cpu[1-4]", "2(x3)")


def test_srun_fills_the_hosts_one_after_the_other_and_leaves_none_empty():
    hosts = slurm_hosts("n[1-3]", "2(x3)")
    assert place_ranks(hosts, 6) == ["n1", "n1", "n2", "n2", "n3", "n3"]
    assert place_ranks(hosts, 4) == ["n1", "n1", "n2", "n3"]  # the example of srun's manual
    assert place_ranks(hosts, 2) == ["n1", "n2"]
    assert place_ranks(hosts, 8, oversubscribe=True) == ["n1"] * 3 + ["n2"] * 3 + ["n3"] * 2


def test_more_ranks_than_tasks_name_slurms_own_option():
    with pytest.raises(UserError, match=r"7 ranks, but the node list n\[1-3\] has 6 slots: .*--ntasks=7.*--overcommit"):
        place_ranks(slurm_hosts("n[1-3]", "2(x3)"), 7)
