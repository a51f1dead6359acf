"""The accounts balance, or the run ends."""

import pytest

from mpirl.accounts import Accounts


def test_steps_that_are_learned_from_or_dropped_balance():
    accounts = Accounts(collected=10, gathered=10, learned=7, archived=10)
    accounts.drop(2, "too old")
    accounts.drop(1, "too old")
    accounts.drop(0, "never")
    assert accounts.dropped == {"too old": 3}
    accounts.check(archived=True)


@pytest.mark.parametrize("name", ["collected", "gathered", "learned", "archived"])
@pytest.mark.parametrize("difference", [-1, 1])
def test_a_lost_or_doubled_step_is_noticed(name, difference):
    accounts = Accounts(10, 10, 10, 10)
    accounts.check(archived=True)
    setattr(accounts, name, 10 + difference)
    with pytest.raises(RuntimeError, match=f"do not balance.*{10 + difference}"):
        accounts.check(archived=True)


def test_thinned_steps_count_as_archived_and_deleted_ones_were():
    accounts = Accounts(10, 10, 10)
    accounts.archive(7, "")
    accounts.archive(2, "by archive.every=2")
    accounts.archive(1, "by archive.every=2")
    accounts.deleted = {"by archive.max_bytes=9": 7}
    accounts.check(archived=True)
    assert str(accounts).endswith("archived 7, thinned 3 by archive.every=2, deleted 7 by archive.max_bytes=9, dropped 0")
    assert Accounts.from_state(accounts.state_dict()) == accounts
    accounts.deleted = {"by archive.max_bytes=9": 8}
    with pytest.raises(RuntimeError, match="do not balance"):
        accounts.check(archived=True)


def test_a_state_from_before_thinning_comes_back():
    assert Accounts.from_state({"collected": 1, "gathered": 1, "learned": 1, "archived": 1, "dropped": {}}) == Accounts(1, 1, 1, 1)


def test_without_an_archive_nothing_needs_to_be_archived():
    Accounts(10, 10, 10, 0).check(archived=False)
    with pytest.raises(RuntimeError):
        Accounts(10, 10, 10, 0).check(archived=True)


def test_state_is_a_copy_and_comes_back():
    accounts = Accounts(5, 5, 4, 5, {"too old": 1})
    state = accounts.state_dict()
    restored = Accounts.from_state(state)
    assert restored == accounts
    restored.drop(1, "too old")
    assert state["dropped"] == accounts.dropped == {"too old": 1}


def test_reads_as_one_line():
    assert str(Accounts(1200, 1200, 1000, 0, {"too old": 200})) == (
        "collected 1,200 = gathered 1,200, learned 1,000, archived 0, dropped 200 too old"
    )
    assert str(Accounts()).endswith("dropped 0")
