"""The config: composed by Hydra on rank 0, checked, and handed on as plain dicts."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mpirl.build import closest, converted, settings_of
from mpirl.errors import UserError
from mpirl.rundir import CONFIG
from mpirl.schema import Schema

HERE = Path(__file__).resolve().parent
CONFIGS = HERE / "configs" if (HERE / "configs").is_dir() else HERE.parent / "configs"  # installed, or in a checkout
PROGRAMS = ("train", "evaluate")


@dataclass(frozen=True)
class Job:
    """One run to do: a resolved plain config, and the same as YAML text for the run directory."""

    config: dict[str, Any]
    text: str


def for_each_job(run: Callable[[Job], int]) -> int:
    """Let Hydra read the command line and call `run` for its job, or for each job of a sweep; the largest exit code.

    Hydra itself answers --help and --cfg. Raises UserError for what it cannot compose.
    """
    codes = [0]

    def task(composed: DictConfig) -> None:
        try:
            job = make_job(composed)
        except UserError as error:
            print(f"mpirl: {error}", file=sys.stderr, flush=True)
            codes.append(2)
        else:
            codes.append(run(job))

    ConfigStore.instance().store(name="mpirl_schema", node=Schema)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors instead of printing them
    try:
        hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="config")(task)()
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UserError(composition_error(error)) from error
    return max(codes)


def composition_error(error: Exception) -> str:
    """What Hydra could not compose, with the closest known key."""
    text = str(error).partition("Config search path:")[0]
    words = " ".join(line.strip() for line in text.splitlines() if line.strip())
    unknown = re.search(r"Could not override '([\w.]+)'", words)
    if unknown:
        key, known = unknown[1], known_keys()
        if key in known:
            return f"{key!r} is no key of the chosen option: choose the option that has it, or add it with +{key}=VALUE"
        return f"unknown key {key!r}{closest(key, known)}; `python -m mpirl.main --cfg job` shows all (of other groups: --help)"
    cause = f" ({first_line(error.__cause__)})" if error.__cause__ else ""
    return f"the config cannot be composed: {words}{cause}"


def known_keys() -> list[str]:
    """All keys of the schema and of the component configs, by full name."""
    keys = [key for key in flat_keys(OmegaConf.to_container(OmegaConf.structured(Schema)))]
    for group in ("algorithm", "model", "emulator"):
        for path in (CONFIGS / group).glob("*.yaml"):
            node = OmegaConf.to_container(OmegaConf.load(path))
            keys += flat_keys(node if isinstance(node, dict) and group in node else {group: node})
    return keys


def flat_keys(node: Any, prefix: str = "") -> list[str]:
    if not isinstance(node, dict):
        return []
    return [full for key, value in node.items() for full in (f"{prefix}{key}", *flat_keys(value, f"{prefix}{key}."))]


def make_job(composed: DictConfig) -> Job:
    """The job that Hydra's composed config asks for; a saved run's own config counts where there is one."""
    runtime = HydraConfig.get()
    overrides = list(runtime.overrides.task)
    if runtime.mode == RunMode.MULTIRUN:
        name_trial(composed, overrides, sys.argv[1:])
    composed.choices = {key: value for key, value in runtime.runtime.choices.items() if not key.startswith("hydra/")}
    try:
        tidy_name(composed)
        if composed.resume or composed.program == "evaluate":
            composed = saved_config(composed, overrides)
            tidy_name(composed)
        config = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        missing = re.search(r"Missing mandatory value: (\S+)", str(error))
        what = f"{missing[1]} is missing: add {missing[1]}=VALUE" if missing else first_line(error)
        raise UserError(f"the config cannot be resolved: {what}") from error
    assert isinstance(config, dict)
    config["total_steps"] = converted(config["total_steps"], int, "total_steps")
    check(config)
    return Job(config, OmegaConf.to_yaml(OmegaConf.create(config)))


def tidy_name(composed: DictConfig) -> None:
    """The name becomes a folder's name."""
    composed.name = re.sub(r"[^\w.+=,-]+", "-", str(composed.name)).strip("-")


def check(config: Mapping[str, Any]) -> None:
    """Raise UserError for values that no run can have."""
    if config["program"] not in PROGRAMS:
        program, choices = config["program"], ", ".join(PROGRAMS)
        raise UserError(f"program={program!r}{closest(program, PROGRAMS)}: choose one of {choices}")
    least = {"total_steps": 1, "steps": 1, "seed": 0, "ranks": 2, "evaluation.every": 0, "evaluation.episodes": 1}
    least |= {"checkpoint.every": 0, "checkpoint.keep": 1, "console.every": 1, "placement.lanes_per_worker": 0}
    least |= {"archive.segment_iterations": 1, "archive.segment_bytes": 1, "archive.segment_seconds": 0}
    for key, bound in least.items():
        value = lookup(config, key)
        if value < bound:
            raise UserError(f"{key}={value}: write {bound} or more")
    for key in ("deadline", "max_time"):
        if config[key] is not None and not config[key] > 0:
            raise UserError(f"{key}={config[key]}: write a number of seconds above 0")
    for key, provided in (("emulator", ("num_lanes",)), ("model", ("specs",)), ("algorithm", ("model", "specs"))):
        settings_of(config[key], key, provided)


def lookup(config: Mapping[str, Any], key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config


def saved_config(composed: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The config of the run in run_dir, with the command line's overrides applied to it."""
    path = Path(composed.run_dir) / CONFIG
    if not path.is_file():
        raise UserError(f"no run in {composed.run_dir} (no {path}): mend run_dir, or name and trial")
    try:
        saved = OmegaConf.merge(OmegaConf.structured(Schema), OmegaConf.load(path))
    except Exception as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}") from error
    assert isinstance(saved, DictConfig)
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        apply(saved, override)
    for key in ("program", "resume", "overwrite", "run_dir"):
        saved[key] = composed[key]
    return saved


def apply(saved: DictConfig, override: Override) -> None:
    """Apply one command-line override to a saved config."""
    key, value = override.get_key_element().lstrip("+~"), override.value()
    if key in saved.choices or key == "experiment":
        made_with = saved.choices.get(key)
        if made_with != value:
            raise UserError(f"{key}={value}: the run was made with {key}={made_with}; that cannot change in a saved run")
        return
    if OmegaConf.select(saved, key, default=KeyError) is KeyError or override.is_delete():
        raise UserError(f"{override.input_line}: the saved run has no key {key!r} that could be changed")
    try:
        OmegaConf.update(saved, key, value)
    except OmegaConfBaseException as error:
        raise UserError(f"{override.input_line}: {first_line(error)}") from error


def name_trial(composed: DictConfig, overrides: Sequence[str], arguments: Sequence[str]) -> None:
    """In a sweep over more than seeds, name the trial after what was swept, so that no two jobs share a run directory."""
    parser = OverridesParser.create()
    given = parser.parse_overrides([argument for argument in arguments if "=" in argument and not argument.startswith("-")])
    swept = {override.get_key_element() for override in given if override.is_sweep_override()}
    if swept <= {"seed"} or {"trial", "run_dir"} & {override.get_key_element() for override in given}:
        return
    values = [text for text in overrides if parser.parse_override(text).get_key_element() in swept]
    composed.trial = ",".join(values).replace("/", "_")


def first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
