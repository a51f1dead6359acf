"""Agreement: a mistake that one rank meets is raised on all, and told once."""

import pytest

from mpirl.agreement import agree, agreed_message
from mpirl.errors import AgreedError, UserError
from mpirl.transport.threads import run_threads


def failing_on(ranks, error, size=3):
    """Every rank's part in an agreement in which `ranks` fail; what each rank got."""

    def rank(group):
        def make():
            if group.rank in ranks:
                raise error(group.rank)
            return group.rank * 10

        try:
            return agree(group, make, lambda made: f"rank {group.rank} made {made}")
        except AgreedError as raised:
            return str(raised)

    return run_threads(size, rank, deadline=20)


def test_what_was_made_is_each_ranks_own_and_the_descriptions_are_everybodys():
    results = failing_on((), UserError)
    assert [made for made, _ in results] == [0, 10, 20]
    assert all(descriptions == ["rank 0 made 0", "rank 1 made 10", "rank 2 made 20"] for _, descriptions in results)


@pytest.mark.parametrize("ranks", [(0,), (2,), (1, 2), (0, 1, 2)])
def test_all_ranks_raise_when_some_fail(ranks):
    messages = failing_on(ranks, lambda rank: UserError("no such game"))
    assert len(set(messages)) == 1 and messages[0].count("no such game") == 1


def test_the_ranks_are_named_unless_all_workers_met_it():
    (message, *_) = failing_on((2,), lambda rank: UserError("no such game"))
    assert message.startswith("rank 2 on ") and message.endswith(": no such game")
    assert failing_on((1, 2), lambda rank: UserError("no such game"))[0] == "no such game"


def test_different_mistakes_are_told_side_by_side():
    message = failing_on((1, 2), lambda rank: UserError(f"mistake {rank}"))[0]
    assert [line.split(": ")[1] for line in message.splitlines()] == ["mistake 1", "mistake 2"]


def test_an_error_that_is_no_mistake_shows_its_traceback_and_rank():
    message = failing_on((1,), lambda rank: ZeroDivisionError("in the game"))[0]
    assert message.startswith("rank 1 on host ") and "Traceback" in message and "ZeroDivisionError: in the game" in message


def test_one_message_for_many_ranks():
    failures = {rank: (f"host{rank % 2}", "disk full", "") for rank in (1, 2, 3)}
    assert agreed_message(failures, 9) == "rank 1 on host1, 2 on host0, 3 on host1: disk full"
