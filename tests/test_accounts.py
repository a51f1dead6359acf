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
