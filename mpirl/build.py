"""Build an object from a config node: `_target_` names a class or function by import path, other keys are arguments."""

from __future__ import annotations

import collections.abc
import difflib
import importlib
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, Union

from mpirl.errors import UserError

TARGET = "_target_"


def locate(path: Any, where: str) -> Callable[..., Any]:
    """The class or function at import path `package.module.Name`."""
    module_name, _, name = str(path).rpartition(".")
    if not isinstance(path, str) or not module_name or path.startswith("."):
        raise UserError(f"{where}.{TARGET}={path!r}: write an import path such as my_module.MyClass")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not (module_name + ".").startswith(f"{error.name}."):
            raise
        raise UserError(
            f"{where}.{TARGET}={path!r}: no module {error.name!r}; start in its folder or add it to PYTHONPATH"
        ) from error
    if not callable(getattr(module, name, None)):
        raise UserError(f"{where}.{TARGET}={path!r}: module {module_name!r} has no class or function {name!r}")
    return getattr(module, name)


def settings_of(
    node: Mapping[str, Any], where: str, provided: tuple[str, ...] = ()
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The node's target and its settings, checked against the target's signature and type hints.

    `provided` are arguments that the caller will pass itself. Raises UserError for unknown, missing or ill-typed keys.
    """
    if not isinstance(node, Mapping) or TARGET not in node:
        raise UserError(f"config node {where!r} needs a {TARGET!r} key with an import path, got {node!r}")
    target = locate(node[TARGET], where)
    settings = {str(key): value for key, value in node.items() if key != TARGET}
    parameters = inspect.signature(target).parameters
    kinds = {name: parameter.kind for name, parameter in parameters.items()}
    open_ended = inspect.Parameter.VAR_KEYWORD in kinds.values()
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    known = [name for name in parameters if name not in provided and kinds[name] not in variadic]
    for key in settings:
        if key in provided or (key not in known and not open_ended):
            takes = ", ".join(known) or "nothing"
            raise UserError(f"unknown key {where}.{key}{closest(key, known)}; {node[TARGET]} takes: {takes}")
    for name in known:
        if parameters[name].default is inspect.Parameter.empty and name not in settings:
            raise UserError(f"missing key {where}.{name}; {node[TARGET]} needs it")
    hints = {name: hint for name, hint in type_hints(target).items() if name in known}
    return target, {key: converted(value, hints.get(key, Any), f"{where}.{key}") for key, value in settings.items()}


def build(node: Mapping[str, Any], where: str, **provided: Any) -> Any:
    """Make the node's object. `where` is the node's place in the config, for messages."""
    target, settings = settings_of(node, where, tuple(provided))
    accepted = inspect.signature(target).parameters
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
    given = {name: value for name, value in provided.items() if open_ended or name in accepted}
    return target(**given, **settings)


def closest(word: str, known: typing.Iterable[str]) -> str:
    """' (did you mean X?)', or nothing when no known word is close."""
    matches = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


def type_hints(target: Callable[..., Any]) -> dict[str, Any]:
    function = target.__init__ if inspect.isclass(target) else target
    try:
        return typing.get_type_hints(function)
    except Exception:  # a user's hints may name things that are not importable: then nothing is checked
        return {}


def converted(value: Any, hint: Any, where: str) -> Any:
    """`value` as the hinted type (an int for 1e6 where an int is wanted), or UserError."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        for option in arguments:
            try:
                return converted(value, option, where)
            except UserError:
                continue
        raise mismatch(value, hint, where)
    if origin is Literal:
        if value in arguments:
            return value
        raise UserError(f"{where}={value!r}: choose one of {', '.join(map(repr, arguments))}")
    kind = origin or hint
    if kind in (None, type(None)):
        if value is None:
            return None
        raise mismatch(value, hint, where)
    if kind in (int, float, bool, str):
        return scalar(value, kind, where)
    if kind in (list, tuple, collections.abc.Sequence):
        if not isinstance(value, (list, tuple)):
            raise mismatch(value, hint, where)
        inner = [arguments[0] if arguments else Any] * len(value)
        if kind is tuple and arguments and arguments[-1] is not ...:
            if len(value) != len(arguments):
                raise UserError(f"{where}={value!r} has {len(value)} items, wanted {len(arguments)}")
            inner = list(arguments)
        items = [converted(item, inner[i], f"{where}[{i}]") for i, item in enumerate(value)]
        return tuple(items) if kind is tuple else items
    if kind in (dict, collections.abc.Mapping) and not isinstance(value, Mapping):
        raise mismatch(value, hint, where)
    return value


def scalar(value: Any, kind: type, where: str) -> Any:
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise mismatch(value, kind, where)


def mismatch(value: Any, hint: Any, where: str) -> UserError:
    wanted = getattr(hint, "__name__", str(hint)) if typing.get_origin(hint) is None else str(hint)
    return UserError(f"{where}={value!r} is of type {type(value).__name__}, wanted {wanted}")
