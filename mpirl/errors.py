"""The errors that mpirl tells apart: the user's mistakes, and ranks that did not answer."""


class UserError(ValueError):
    """A mistake the user can mend; the message names the value, the place and the mend.

    It is printed once for the whole job, without a traceback.
    """


class RankFailed(RuntimeError):
    """Another rank raised; `rank`, `host` and `report` (its traceback) say which and why."""

    def __init__(self, rank: int, host: str, report: str):
        super().__init__(f"rank {rank} on host {host} failed:\n{report}")
        self.rank, self.host, self.report = rank, host, report


class RankSilent(RuntimeError):
    """A wait on other ranks passed its deadline; the message names the ranks waited for."""


class Interrupted(RuntimeError):
    """A wait was given up because this rank has failed elsewhere."""


class AgreedError(UserError):
    """A mistake that all ranks of the group raise alike: rank 0 prints it, and all leave in order."""
