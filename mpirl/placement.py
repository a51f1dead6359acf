"""`python -m mpirl.placement`: shows what would run where, and what it would move, before anything runs. Needs no MPI."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mpirl.assembly import make_model
from mpirl.central import bytes_per_weight
from mpirl.config import compose_job
from mpirl.emulators.lanes import make_emulator
from mpirl.device import choose_device
from mpirl.errors import UserError
from mpirl.hostfile import MPICH, OPENMPI, SLURM, TITLES, Host, Hosts, parse_hostfile, place_ranks
from mpirl.models.base import is_small
from mpirl.nodelist import slurm_hosts
from mpirl.plan import Plan, make_plan, single_threaded
from mpirl.rankinfo import RankInfo
from mpirl.transport.startup import first_rank_on
from mpirl.preflight import Question, Report, check_gpu_first, check_hosts, check_names, is_local, known_hosts
from mpirl.rules import make_rules, rule_for
from mpirl.table import describe_world
from mpirl.weights import FlatWeights

EPILOG = """examples:
  python -m mpirl.placement -np 9 --hostfile hostfiles/lab
  python -m mpirl.placement -np 9 --hostfile hostfiles/lab --check emulator=cartpole placement.lanes_total=64
  python -m mpirl.placement --nodelist 'cpu[1-4]' --tasks-per-node '2(x4)'

Without a hostfile or node list, Slurm's job is taken where there is one, else this machine alone. A host name that this
machine does not know is an error, unless it knows none of them: then it is on another network.
exit code: 0; 1 if --check found something wrong; 2 for a mistake in the hostfile or the settings"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; the exit code."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        return show(options)
    except UserError as error:
        print(f"mpirl: {error}", file=sys.stderr)
        return 2


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m mpirl.placement", description=__doc__, epilog=EPILOG, formatter_class=raw)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, as for mpirl.main")
    parser.add_argument("-np", "-n", "--np", type=positive, metavar="N", help="number of ranks (default: all slots)")
    parser.add_argument("--hostfile", "-f", type=Path, metavar="FILE", help="of Open MPI (cpu1 slots=2) or MPICH (cpu1:2)")
    parser.add_argument("--mpi", choices=(OPENMPI, MPICH), help="whose hostfile it has to be (default: as it is written)")
    parser.add_argument("--nodelist", metavar="LIST", help="Slurm's, as cpu[1-4],gpu0")
    parser.add_argument("--tasks-per-node", metavar="LIST", help="ranks of each host of --nodelist, as '2(x3),1' (default: 1)")
    parser.add_argument("--oversubscribe", action="store_true", help="more ranks than slots are meant")
    parser.add_argument("--config-dir", metavar="DIR", help="your own configs, as for mpirl.main")
    parser.add_argument("--check", action="store_true", help="ask every host by ssh whether it has what the run needs")
    parser.add_argument("--ssh", default="ssh", metavar="COMMAND", help="for --check, as 'ssh -F my_config'")
    parser.add_argument("--python", default=sys.executable, metavar="PATH", help="on every host, for --check (default: this)")
    return parser.parse_intermixed_args(arguments)


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: write 1 or more")
    return number


def show(options: argparse.Namespace) -> int:
    hosts = find_hosts(options, os.environ)
    job = compose_job(options.overrides, options.config_dir)
    ssh, notes, reports = shlex.split(options.ssh), list(hosts.notes), []
    if options.check:
        question = Question.about(job.config, options.python, ssh)
        reports = check_hosts(hosts, question, allowed_differences(job.config))
        say_reports(reports)
    elif hosts.dialect != SLURM:
        notes += check_names(hosts, known_hosts(hosts.names, ssh))
    learner = job.config["placement"]["learner"]
    if job.config["device"] != "cpu" and not learner:
        check_gpu_first(hosts, {report.host: bool(report.gpus) for report in reports if report.cores is not None})
    cores = {report.host: report.cores for report in reports if report.cores is not None}
    cores |= {name: len(RankInfo.here(0).cores) for name in hosts.names if is_local(name)}
    num_ranks = options.np or sum(host.slots or cores.get(host.name, 1) for host in hosts.hosts)
    ranks = place_ranks(hosts, num_ranks, options.oversubscribe, cores)
    if learner:
        ranks.insert(0, ranks.pop(first_rank_on(learner, ranks)))
    device = learner_device(job.config["device"], ranks[0], reports)
    notes += crowded(hosts, ranks, cores, options.oversubscribe)
    print(describe(hosts, ranks, cores, job.config, device, notes))
    print(f"start with: {start_line(hosts, num_ranks, options)}")
    return 1 if any(report.problems for report in reports) else 0


def find_hosts(options: argparse.Namespace, environ: Mapping[str, str]) -> Hosts:
    """The hosts that the options name, else those of the Slurm job this is in, else this machine."""
    if options.hostfile and options.nodelist:
        raise UserError(f"--hostfile {options.hostfile} and --nodelist {options.nodelist} contradict: give one of them")
    if options.hostfile:
        try:
            text = options.hostfile.read_bytes().decode()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"the hostfile {options.hostfile} cannot be read ({error}): mend --hostfile") from error
        return parse_hostfile(text, str(options.hostfile), options.mpi)
    nodelist = options.nodelist or slurm_job("SLURM_JOB_NODELIST", environ)
    if nodelist:
        return slurm_hosts(nodelist, options.tasks_per_node or slurm_job("SLURM_TASKS_PER_NODE", environ))
    return Hosts("this machine", options.mpi or OPENMPI, (Host(RankInfo.here(0).host, None),))


def slurm_job(variable: str, environ: Mapping[str, str]) -> str | None:
    """The variable of the Slurm job this runs in; of a heterogeneous one, that of all its parts."""
    parts = range(int(environ.get("SLURM_HET_SIZE") or 0))
    values = [environ.get(f"{variable}_HET_GROUP_{part}") for part in parts] or [environ.get(variable)]
    return ",".join(value for value in values if value) or None


def allowed_differences(config: Mapping[str, Any]) -> list[str]:
    allowed = config.get("allow_differences") or []
    return [allowed] if isinstance(allowed, str) else list(allowed)


def say_reports(reports: Sequence[Report]) -> None:
    """What is wrong on stderr, host by host, and the count."""
    for report in reports:
        for problem in report.problems:
            print(f"{report.host}: {problem}", file=sys.stderr)
    good = sum(not report.problems for report in reports)
    print(f"host check: {good} of {len(reports)} ready\n", flush=True)


def learner_device(name: str, host: str, reports: Sequence[Report]) -> str:
    """The setting `device`; auto as what it will be, where that is known."""
    if is_local(host):
        return choose_device(name).type if name == "auto" else name
    asked = next((report for report in reports if report.host == host and report.cores is not None), None)
    return ("cuda" if asked.gpus else "cpu") if asked and name == "auto" else name


def describe(
    hosts: Hosts, ranks: Sequence[str], cores: Mapping[str, int], config: Mapping[str, Any], device: str, notes: Sequence[str]
) -> str:
    """The table of the world that the launcher would make of the hosts."""
    here = RankInfo.here(0).cores
    cores_of = {name: here if is_local(name) else tuple(range(number)) for name, number in cores.items()}
    infos = [RankInfo(rank, name, cores_of.get(name, ()), cores.get(name, 0)) for rank, name in enumerate(ranks)]
    settings = config["placement"]
    plan = make_plan(infos, settings)
    emulator = make_emulator(config, 1)
    specs = emulator.specs
    emulator.close()
    model, layout = make_model(config, specs)
    small = is_small(model)
    return describe_world(
        single_threaded(plan, settings) if small else plan,
        layout,
        FlatWeights(model).size,
        title=f"{hosts.where}, as {TITLES[hosts.dialect]} maps it",
        device=device,
        archived=config["archive"]["enabled"],
        threads_known=[small or bool(plan.cores[rank]) or threads_are_set(rank, plan, settings) for rank in range(len(ranks))],
        notes=notes,
        lag=config["schedule"]["lag"],
        bytes_per_weight=bytes_per_weight(config),
    )


def threads_are_set(rank: int, plan: Plan, settings: Mapping[str, Any]) -> bool:
    """Whether a rank's threads do not follow from its cores."""
    rule = rule_for(make_rules(settings["rules"]), rank, plan.hosts[rank]) if rank else None
    return settings["worker_threads" if rank else "learner_threads"] is not None or bool(rule and rule.threads)


def crowded(hosts: Hosts, ranks: Sequence[str], cores: Mapping[str, int], oversubscribe: bool) -> list[str]:
    """Hosts on which Open MPI would refuse to start, since it gives every rank a core of its own if not told otherwise."""
    if hosts.dialect != OPENMPI or oversubscribe:
        return []
    return [
        f"{name} has {cores[name]} cores for {number} ranks: Open MPI refuses that without --bind-to none"
        for name, number in Counter(ranks).items()
        if number > cores.get(name, number)
    ]


def start_line(hosts: Hosts, num_ranks: int, options: argparse.Namespace) -> str:
    """The command that starts what the table shows."""
    settings = [f"--config-dir={options.config_dir}"] * bool(options.config_dir) + options.overrides
    file = ["-f" if hosts.dialect == MPICH else "--hostfile", str(options.hostfile)] if options.hostfile else []
    how = {
        # Without slot, Open MPI puts every rank on the first host when it may oversubscribe.
        OPENMPI: ["mpirun", "-np", str(num_ranks), *file, "--bind-to", "none"]
        + ["--map-by", "slot:OVERSUBSCRIBE"] * options.oversubscribe,
        MPICH: ["mpirun", "-np", str(num_ranks), *file],
        SLURM: ["srun", "-n", str(num_ranks), *["--overcommit"] * options.oversubscribe],
    }[hosts.dialect]
    return shlex.join([*how, "python", "-m", "mpirl.main", *settings])


if __name__ == "__main__":
    sys.exit(main())
