"""Runs whole command lines in this process, in worlds of threads."""

from mpirl.config import compose_job, job_of
from mpirl.errors import AgreedError
from mpirl.programs import program
from mpirl.stages import run_in_turn, stages
from mpirl.transport.threads import run_threads


def run(*overrides, ranks=2):
    """Run a command line in this process; its last config."""
    configs = stages(compose_job([*map(str, overrides), f"ranks={ranks}", "transport=threads"]).config)

    def on_rank(job, group):
        try:
            program(job.config)(job.config, job.text, group)
        except AgreedError as error:  # all ranks have it, and leave in order
            return error

    def run_one(config):
        job = job_of(config)
        errors = run_threads(ranks, lambda group: on_rank(job, group))
        if errors[0]:
            raise errors[0]
        return 0

    assert run_in_turn(configs, run_one) == 0
    return configs[-1]
