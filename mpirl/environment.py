"""Variables that libraries read when they are loaded; to be imported before torch."""

from __future__ import annotations

import os

SPINS = "2000"
"""How often a thread of torch looks for work before it sleeps. The default, 300,000, is fine on an idle machine only: as soon
as anything else wants the cores, waiting threads keep working ones from running, and training is 10 times slower."""

os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
