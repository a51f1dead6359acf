"""The built-in Catch."""

import time

import numpy as np
import pytest

from mpirl.emulators.catch import Catch
from mpirl.errors import UserError


def play(catch: Catch, choose) -> float:
    """The return of one episode; `choose(ball column, paddle column)` gives the action."""
    board, total, terminated = catch.reset(3), 0.0, False
    while not terminated:
        ball = int(np.argmax(board[:-1].max(axis=0)))
        board, reward, terminated, truncated, _ = catch.step(np.int64(choose(ball, int(np.argmax(board[-1])))))
        assert not truncated
        total += reward
    return total


def test_following_the_ball_earns_one():
    assert play(Catch(), lambda ball, paddle: 1 + np.sign(ball - paddle)) == 1.0


def test_leaving_the_ball_loses_one():
    assert play(Catch(), lambda ball, paddle: 0 if ball > 2 else 2) == -1.0


def test_episode_takes_one_step_less_than_rows():
    catch = Catch(rows=4, columns=3)
    catch.reset(0)
    assert [catch.step(np.int64(1)).terminated for _ in range(3)] == [False, False, True]


def test_unseeded_resets_go_on_with_the_random_numbers_of_the_last_seed():
    def columns(catch):
        return [int(np.argmax(catch.reset(seed)[0])) for seed in (5, None, None, None)]

    assert columns(Catch(columns=50)) == columns(Catch(columns=50))
    assert len(set(columns(Catch(columns=50)))) > 1


def test_latency_is_slept_in_every_step():
    catch = Catch(latency=0.02)
    catch.reset(0)
    start = time.perf_counter()
    catch.step(np.int64(1))
    assert time.perf_counter() - start >= 0.02


def test_picture_shows_ball_and_paddle():
    catch = Catch(rows=3, columns=2)
    catch.reset(0)
    picture = catch.render()
    assert picture.shape == (48, 32, 3) and picture.dtype == np.uint8 and picture.mean() == 255 * 2 / 6


def test_board_without_room_is_refused():
    with pytest.raises(UserError, match="rows=1"):
        Catch(rows=1)
