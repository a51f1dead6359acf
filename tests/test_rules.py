"""Placement rules: patterns, first match wins, and what a wrong rule is told."""

import pytest

from mpirl.errors import UserError
from mpirl.rules import is_host, joined, make_rules, numbers, rule_for


@pytest.mark.parametrize(
    "pattern, host, expected",
    [
        ("cpu1", "cpu1", True),
        ("cpu1", "cpu11", False),
        ("cpu*", "cpu11", True),
        ("cpu?", "cpu11", False),
        ("cpu[1-16]", "cpu11", True),
        ("cpu[1-16]", "cpu17", False),
        ("cpu[01-16]", "cpu07", True),
        ("cpu[01-16]", "cpu7", False),
        ("rack[1-2]n[3,5-6]", "rack2n5", True),
        ("rack[1-2]n[3,5-6]", "rack2n4", False),
        ("cpu[ab]", "cpub", True),
        ("cpu1", "cpu1.lab.example.org", True),
        ("cpu1.lab*", "cpu1.lab.example.org", True),
    ],
)
def test_host_patterns(pattern, host, expected):
    assert is_host(pattern, host) is expected


@pytest.mark.parametrize("value, expected", [(3, [3]), ("1-4,7", [1, 2, 3, 4, 7]), ([1, "4-5"], [1, 4, 5])])
def test_numbers_and_ranges(value, expected):
    assert numbers(value, "here") == expected


@pytest.mark.parametrize("value", ["x", "3-1", "1-", "", "-2", [1, None]])
def test_what_is_no_number_is_refused(value):
    with pytest.raises(UserError, match="here=.*write numbers and ranges"):
        numbers(value, "here")


def test_the_first_matching_rule_wins():
    rules = make_rules([{"ranks": 2, "lanes": 1}, {"hosts": "cpu[1-2],gpu0", "lanes": 2}, {"ranks": "1-9", "lanes": 3}])
    assert [rule_for(rules, rank, host).lanes for rank, host in [(1, "cpu1"), (2, "cpu1"), (3, "gpu0"), (4, "cpu3")]] == [2, 1, 2, 3]
    assert rule_for(rules, 10, "cpu3") is None


def test_a_rule_with_ranks_and_hosts_wants_both():
    (rule,) = make_rules([{"ranks": "1-4", "hosts": "cpu1"}])
    assert rule.matches(1, "cpu1") and not rule.matches(1, "cpu2") and not rule.matches(5, "cpu1")


@pytest.mark.parametrize(
    "rule, message",
    [
        ({"rank": 1, "lanes": 2}, r"unknown key placement.rules\[0\].rank \(did you mean 'ranks'\?\)"),
        ({"lanes": 2}, "names no workers: add ranks"),
        ({"ranks": 1, "lanes": -1}, r"placement.rules\[0\].lanes=-1: write a whole number, 0 or more"),
        ({"ranks": 1, "lanes": 1.5}, "write a whole number"),
        ({"ranks": 1, "threads": 0}, "write a whole number, 1 or more"),
        ({"ranks": 1, "emulator": 3}, "write a mapping of emulator keys"),
        ({"ranks": 1, "gpus": "first"}, "list GPUs by number or by UUID"),
        ("cpu1", "write a mapping such as"),
    ],
)
def test_a_wrong_rule_is_told_the_mend(rule, message):
    with pytest.raises(UserError, match=message):
        make_rules([rule])


def test_changed_settings_join_nested_ones():
    node = {"_target_": "a.B", "x": 1, "settings": {"g": 9.8, "h": 2}}
    assert joined(node, {"x": 2, "settings": {"g": 1.6}}) == {"_target_": "a.B", "x": 2, "settings": {"g": 1.6, "h": 2}}
    assert node["settings"] == {"g": 9.8, "h": 2}
