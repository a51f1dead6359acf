"""The accounts of steps: what was collected must be gathered, learned from, archived, or dropped for a stated reason."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Accounts:
    """True steps since the run's first iteration; seams after the end of an episode are no steps.

    collected: as the workers counted them, step by step. gathered: as found in the batches. learned: as the algorithm
    says. archived: as handed to the archive (0 when it is off). dropped: by reason.
    """

    collected: int = 0
    gathered: int = 0
    learned: int = 0
    archived: int = 0
    dropped: dict[str, int] = field(default_factory=dict)

    def drop(self, steps: int, reason: str) -> None:
        """Enter steps that were gathered and not learned from."""
        if steps:
            self.dropped[reason] = self.dropped.get(reason, 0) + steps

    def check(self, archived: bool) -> None:
        """Raise RuntimeError when a step was lost or doubled on its way."""
        balanced = self.collected == self.gathered == self.learned + sum(self.dropped.values())
        if not balanced or (archived and self.archived != self.gathered):
            raise RuntimeError(f"steps were lost or doubled, the accounts do not balance: {self}")

    def __str__(self) -> str:
        dropped = ", ".join(f"{steps:,} {reason}" for reason, steps in self.dropped.items()) or "0"
        return (
            f"collected {self.collected:,} = gathered {self.gathered:,}, learned {self.learned:,}, "
            f"archived {self.archived:,}, dropped {dropped}"
        )

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Accounts:
        return cls(**{**state, "dropped": dict(state["dropped"])})
