"""mpirl: MPI SPMD reinforcement learning, one learner and many ranks of emulators."""

__version__ = "0.1.0"
