"""Building from config nodes: what a key may be called, what it may hold, and what the user reads when it is wrong."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Optional, Union

import pytest

from mpirl.build import build, closest, converted, locate, settings_of
from mpirl.errors import UserError


class Engine:
    def __init__(self, specs, size: int, rate: float = 0.5, name: Optional[str] = None, loud: bool = False):
        self.arguments = {"specs": specs, "size": size, "rate": rate, "name": name, "loud": loud}


class Plain:
    pass


def open_ended(specs, size: int = 1, **settings: Any):
    return {"specs": specs, "size": size, **settings}


def variadic(*parts: int, size: int = 1):
    return parts, size


def strange(size: "NoSuchType" = 1):  # noqa: F821
    return size


constant = 3


def node(target, **settings):
    return {"_target_": f"{__name__}.{target}", **settings}


def refused(message, target, **settings):
    with pytest.raises(UserError, match=message):
        build(node(target, **settings), "engine", specs="S")


def test_settings_and_what_the_caller_provides_become_arguments():
    engine = build(node("Engine", size=3, name="x"), "engine", specs="S")
    assert engine.arguments == {"specs": "S", "size": 3, "rate": 0.5, "name": "x", "loud": False}


def test_provided_arguments_that_the_target_does_not_take_are_left_out():
    assert isinstance(build(node("Plain"), "engine", specs="S", model="M"), Plain)


def test_an_open_ended_target_takes_any_key_and_still_checks_the_named_ones():
    assert build(node("open_ended", color="red", size=2.0), "engine", specs="S") == {"specs": "S", "size": 2, "color": "red"}
    refused("engine.size='two' is of type str, wanted int", "open_ended", size="two")


def test_unknown_key_names_the_place_the_close_match_and_what_there_is():
    refused(r"unknown key engine.sizee \(did you mean 'size'\?\); .*Engine takes: size, rate, name, loud", "Engine", sizee=3)
    refused("unknown key engine.size; .*Plain takes: nothing", "Plain", size=3)
    refused("unknown key engine.parts", "variadic", parts=[1])


def test_keys_that_the_caller_provides_are_not_the_configs():
    refused("unknown key engine.specs", "Engine", size=3, specs="mine")
    refused("unknown key engine.specs", "open_ended", specs="mine")


def test_missing_key_is_named():
    refused("missing key engine.size", "Engine", rate=1)


def test_hints_that_cannot_be_resolved_are_not_checked():
    assert build(node("strange", size="two"), "engine") == "two"


@pytest.mark.parametrize("bad", [None, {}, {"size": 3}, "mpirl.emulators.catch.Catch", [1]])
def test_a_node_needs_a_target(bad):
    with pytest.raises(UserError, match="config node 'engine' needs a '_target_' key"):
        settings_of(bad, "engine")


@pytest.mark.parametrize(
    "path, message",
    [
        ("Game", "write an import path"),
        (".games.Game", "write an import path"),
        (None, "write an import path"),
        (3, "write an import path"),
        ("no_such_module.Game", "no module 'no_such_module'; start in its folder or add it to PYTHONPATH"),
        ("mpirl.no_such.Game", "no module 'mpirl.no_such'"),
        ("mpirl.specs.NoSuch", "module 'mpirl.specs' has no class or function 'NoSuch'"),
        (f"{__name__}.constant", "has no class or function 'constant'"),
        ("mpirl.specs.", "has no class or function ''"),
    ],
)
def test_a_wrong_import_path_says_which_part_is_wrong(path, message):
    with pytest.raises(UserError, match=message):
        locate(path, "engine")


def test_a_module_that_fails_to_import_something_else_shows_its_own_error(tmp_path, monkeypatch):
    (tmp_path / "games_of_a_user.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        locate("games_of_a_user.Game", "emulator")


@pytest.mark.parametrize(
    "value, hint, expected",
    [
        (3, int, 3),
        (1e6, int, 1_000_000),
        (3, float, 3.0),
        (True, bool, True),
        ("a", str, "a"),
        (None, Optional[int], None),
        (4, Optional[int], 4),
        (4, int | None, 4),
        ("a", Union[int, str], "a"),
        ("b", Literal["a", "b"], "b"),
        ([1, 2.0], list[int], [1, 2]),
        ([1, 2], tuple[int, ...], (1, 2)),
        ([1, "a"], tuple[int, str], (1, "a")),
        ((1, 2), Sequence[float], [1.0, 2.0]),
        ([1, "a"], list, [1, "a"]),
        ({"a": 1}, dict[str, int], {"a": 1}),
        ({"a": 1}, Mapping[str, Any], {"a": 1}),
        (None, None, None),
        ("anything", Any, "anything"),
    ],
)
def test_values_take_the_hinted_type(value, hint, expected):
    found = converted(value, hint, "x")
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    "value, hint, message",
    [
        ("3", int, "x='3' is of type str, wanted int"),
        (2.5, int, "x=2.5 is of type float, wanted int"),
        (float("inf"), int, "wanted int"),
        (True, int, "x=True is of type bool, wanted int"),
        (True, float, "wanted float"),
        (1, bool, "wanted bool"),
        (None, str, "x=None is of type NoneType, wanted str"),
        ("a", Optional[int], "wanted typing.Optional"),
        ("c", Literal["a", "b"], "x='c': choose one of 'a', 'b'"),
        (3, list[int], "wanted list"),
        ([1, "b"], list[int], r"x\[1\]='b' is of type str, wanted int"),
        ([1, 2, 3], tuple[int, int], "has 3 items, wanted 2"),
        ([1], dict, "wanted dict"),
        (1, None, "x=1"),
    ],
)
def test_ill_typed_values_are_refused_by_name(value, hint, message):
    with pytest.raises(UserError, match=message):
        converted(value, hint, "x")


def test_closest_is_silent_without_a_close_word():
    assert closest("trian", ["train", "evaluate"]) == " (did you mean 'train'?)"
    assert closest("zzz", ["train"]) == ""
