"""Values that no run can have: found before it begins, on rank 0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mpirl.archive.format import check_content
from mpirl.archive.keeping import check_rules
from mpirl.build import closest, settings_of
from mpirl.commandline import OFFLINE
from mpirl.errors import UserError
from mpirl.rules import joined, make_rules

PROGRAMS = ("train", "evaluate", *OFFLINE)


def check(config: Mapping[str, Any]) -> None:
    """Raise UserError for values that no run can have."""
    if config["program"] not in PROGRAMS:
        program, choices = config["program"], ", ".join(PROGRAMS)
        raise UserError(f"program={program!r}{closest(program, PROGRAMS)}: choose one of {choices}")
    least = {"total_steps": 1, "steps": 1, "seed": 0, "evaluation.every": 0, "evaluation.episodes": 1}
    least |= {"ranks": 1 if config["program"] == "offline" else 2}  # offline, the learner may be alone
    least |= {"checkpoint.every": 0, "checkpoint.keep": 1, "console.every": 1, "placement.lanes_per_worker": 0}
    least |= {"offline.epochs": 1, "offline.steps_per_iteration": 1, "offline.buffer_steps": 0, "offline.evaluate_every": 0}
    least |= {"archive.segment_iterations": 1, "archive.segment_bytes": 1, "archive.segment_seconds": 0}
    for key, bound in least.items():
        value = lookup(config, key)
        if value < bound:
            raise UserError(f"{key}={value}: write {bound} or more")
    if config["schedule"]["lag"] not in (0, 1):
        raise UserError(f"schedule.lag={config['schedule']['lag']}: write 0, or 1 to collect while the learner learns")
    for key, choices in (("wire.gather", ("direct", "host")), ("wire.weights", ("fp32", "bf16"))):
        if lookup(config, key) not in choices:
            raise UserError(f"{key}={lookup(config, key)!r}: choose one of {', '.join(choices)}")
    for key in ("deadline", "startup_deadline", "max_time"):
        if config[key] is not None and not config[key] > 0:
            raise UserError(f"{key}={config[key]}: write a number of seconds above 0")
    for key, provided in (("model", ("specs",)), ("algorithm", ("model", "specs"))):
        settings_of(config[key], key, provided)
    check_policy(config)
    check_offline(config)
    check_content(config["archive"]["content"])
    check_rules(*(config["archive"][name] for name in ("every", "min_return_quantile", "max_bytes")))
    check_emulator(config)


def check_policy(config: Mapping[str, Any]) -> None:
    if config["policy"] is None:  # of a run that was saved before there was a choice
        return
    target, _ = settings_of(config["policy"], "policy", ("model", "autocast", "extras"))
    if getattr(target, "is_central", False) and config["schedule"]["lag"]:
        raise UserError(
            "policy=central with schedule.lag=1: rank 0 cannot act for the workers and learn at once; choose policy=local, or "
            "schedule.lag=0"
        )


def check_emulator(config: Mapping[str, Any]) -> None:
    """Raise UserError for the emulator's settings, on any worker. Offline training does without a package that is not here."""
    try:
        settings_of(config["emulator"], "emulator", ("num_lanes",))
        for rule in make_rules(config["placement"]["rules"]):
            settings_of(joined(config["emulator"], rule.emulator), f"{rule.where}.emulator", ("num_lanes",))
    except UserError as error:
        if config["program"] != "offline" or not isinstance(error.__cause__, ImportError):
            raise


def check_offline(config: Mapping[str, Any]) -> None:
    """Raise UserError where an archive, a program and an algorithm do not go together."""
    program, archive, algorithm = config["program"], config["offline"]["archive"], config["algorithm"]
    if program in OFFLINE and not archive:
        raise UserError(f"program={program} learns from an archive: add archive=PATH, a run's folder or an archive's")
    if program == "train" and archive is not None:
        raise UserError(
            f"archive={archive} is for program=offline, which learns from an archive; the run's own is set with "
            "archive.enabled and the other keys of archive"
        )
    if program in OFFLINE and config["dry_run"]:
        raise UserError("dry_run=true shows what training would take; offline training it does not know")
    if program == "offline" and config["schedule"]["lag"]:
        raise UserError("schedule.lag=1 is for training on emulators; offline training collects nothing: leave it out")
    if not 0 <= config["offline"]["validation"] < 1:
        raise UserError(f"offline.validation={config['offline']['validation']}: write a share from 0 to below 1")
    online = {"train": algorithm, "offline_to_online": config["online"] or algorithm}.get(program)
    if online and not getattr(settings_of(online, "algorithm", ("model", "specs"))[0], "learns_online", True):
        mend = "add algorithm@online=ppo" if program in OFFLINE else "write program=offline archive=PATH, or another algorithm"
        raise UserError(f"{online['_target_']} learns from archives only: {mend}")


def lookup(config: Mapping[str, Any], key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config
