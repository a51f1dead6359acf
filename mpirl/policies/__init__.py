"""Policies: how a worker chooses actions. The contract is in `base`."""
