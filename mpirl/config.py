"""The config: composed by Hydra on rank 0, checked, and handed on as plain dicts."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from mpirl.build import closest, converted
from mpirl.checks import check
from mpirl.commandline import OFFLINE, made_with, spelled_out
from mpirl.errors import UserError
from mpirl.job import Job
from mpirl.rundir import CONFIG
from mpirl.schema import Schema
from mpirl.stages import run_in_turn, stages, whether_to_resume

HERE = Path(__file__).resolve().parent
CONFIGS = HERE / "configs" if (HERE / "configs").is_dir() else HERE.parent / "configs"  # installed, or in a checkout


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
            codes.append(run_in_turn(stages(job.config), lambda config: run(job_of(config))))

    ConfigStore.instance().store(name="mpirl_schema", node=Schema)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors instead of printing them
    sys.argv[1:] = spelled_out(sys.argv[1:], CONFIGS)
    try:
        hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="config")(task)()
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UserError(composition_error(error)) from error
    return max(codes)


def compose_job(overrides: Sequence[str], config_dir: str | None = None) -> Job:
    """The job that a command line with these overrides asks for, without running it. config_dir: as --config-dir.

    Raises UserError as `for_each_job` does.
    """
    ConfigStore.instance().store(name="mpirl_schema", node=Schema)
    added = [f"hydra.searchpath=['file://{Path(config_dir).resolve()}']"] if config_dir else []
    try:
        with hydra.initialize_config_dir(str(CONFIGS), job_name="mpirl", version_base="1.3"):
            composed = hydra.compose("config", [*added, *spelled_out(overrides, CONFIGS)], return_hydra_config=True)
        HydraConfig.instance().set_config(composed)  # for what the configs take from ${hydra:...}
        with open_dict(composed):
            del composed["hydra"]
        return make_job(composed)
    except UserError:
        raise
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UserError(composition_error(error)) from error


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
    quote = re.search(r"(?:no viable alternative|mismatched|extraneous) (?:at )?input", words)
    if quote:
        words = f"{words.partition(' See https')[0]}; text with brackets or commas needs quotes of its own: \"key='cpu[1-2]'\""
    cause = f" ({first_line(error.__cause__)})" if error.__cause__ else ""
    return f"the config cannot be composed: {words}{cause}"


def known_keys() -> list[str]:
    """All keys of the schema and of the component configs, by full name."""
    keys = [key for key in flat_keys(OmegaConf.to_container(OmegaConf.structured(Schema)))]
    for group in ("algorithm", "model", "policy", "emulator"):
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
        if composed.program in OFFLINE and composed.offline.archive:
            adopt_archive(composed, overrides)
        tidy_name(composed)
        if composed.program != "offline_to_online":  # two runs, of which one may be there
            composed.resume = whether_to_resume(composed.resume, Path(composed.run_dir))
        if composed.program == "evaluate" or (composed.resume and composed.program != "offline_to_online"):
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
    return job_of(config)


def job_of(config: dict[str, Any]) -> Job:
    """The job of a resolved config. Its text is the run's; how it was started this time is not in it."""
    return Job(config, OmegaConf.to_yaml(OmegaConf.create({**config, "resume": False, "overwrite": False})))


def tidy_name(composed: DictConfig) -> None:
    """The name becomes a folder's name."""
    composed.name = re.sub(r"[^\w.+=,-]+", "-", str(composed.name)).strip("-")


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
    program = composed.program if composed.program == "evaluate" else saved.program
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if override.get_key_element() == "program" and override.value() != program:
            raise UserError(
                f"{override.input_line}: the run in {composed.run_dir} is of program={program}; another one goes on from its "
                f"weights with init_from={composed.run_dir} and another trial=NAME or run_dir=PATH"
            )
        apply(saved, override)
    for key in ("resume", "overwrite", "run_dir"):
        saved[key] = composed[key]
    saved.program = program
    return saved


def adopt_archive(composed: DictConfig, overrides: Sequence[str]) -> None:
    """Take what the command line leaves open from the run that made the archive: the emulator's settings, and the name."""
    made = made_with(OmegaConf.to_container(composed.offline)["archive"])
    given = OverridesParser.create().parse_overrides(list(overrides))
    choices = made.get("choices") or {}
    own = {each.get_key_element().lstrip("+~"): each for each in given}
    chosen = own["emulator"].value() if "emulator" in own else choices.get("emulator")
    is_other = "emulator._target_" in own or chosen != choices.get("emulator")
    with open_dict(composed):
        if "emulator" in made and not is_other:
            composed.emulator = OmegaConf.create(made["emulator"])
            for key, each in own.items():
                if key.startswith("emulator.") and not each.is_delete():
                    OmegaConf.update(composed, key, each.value(), force_add=True)
        if not {"name", "run_dir"} & own.keys():
            name = composed.name if is_other else made.get("name", composed.name)
            composed.name = f"{name}-{composed.choices.algorithm}"


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
