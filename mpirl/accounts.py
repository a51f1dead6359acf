"""The accounts of steps: what was collected must be gathered, learned from, archived, or dropped for a stated reason."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Accounts:
    """True steps since the run's first iteration; seams after the end of an episode are no steps.

    collected: as the workers counted them, step by step. gathered: as found in the batches. learned: as the algorithm
    says. archived: as handed to the archive (0 when it is off). dropped: by reason. thinned: by reason, not archived by a
    rule of the user's. deleted: by reason, of those archived.
    """

    collected: int = 0
    gathered: int = 0
    learned: int = 0
    archived: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    thinned: dict[str, int] = field(default_factory=dict)
    deleted: dict[str, int] = field(default_factory=dict)

    def archive(self, steps: int, reason: str) -> None:
        """Enter steps that the archive has taken, or left out for a reason."""
        if reason:
            self.thinned[reason] = self.thinned.get(reason, 0) + steps
        else:
            self.archived += steps

    def drop(self, steps: int, reason: str) -> None:
        """Enter steps that were gathered and not learned from."""
        if steps:
            self.dropped[reason] = self.dropped.get(reason, 0) + steps

    def check(self, archived: bool) -> None:
        """Raise RuntimeError when a step was lost or doubled on its way."""
        balanced = self.collected == self.gathered == self.learned + sum(self.dropped.values())
        kept = self.archived + sum(self.thinned.values()) == self.gathered and sum(self.deleted.values()) <= self.archived
        if not balanced or (archived and not kept):
            raise RuntimeError(f"steps were lost or doubled, the accounts do not balance: {self}")

    def __str__(self) -> str:
        text = f"collected {self.collected:,} = gathered {self.gathered:,}, learned {self.learned:,}"
        text += f", archived {self.archived:,}"
        by_rule = {"thinned": self.thinned, "deleted": self.deleted}
        missing = "".join(f", {name} {_listed(steps)}" for name, steps in by_rule.items() if steps)
        return f"{text}{missing}, dropped {_listed(self.dropped) or '0'}"

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Accounts:
        return cls(**{name: dict(value) if isinstance(value, dict) else value for name, value in state.items()})


def _listed(steps: dict[str, int]) -> str:
    return ", ".join(f"{number:,} {reason}" for reason, number in steps.items())
