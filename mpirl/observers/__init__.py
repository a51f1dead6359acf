"""Observers: they read results and never communicate. The contract is in `base`."""
