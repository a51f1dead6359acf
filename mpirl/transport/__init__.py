"""Transports: how the ranks of a group exchange arrays. The contract is in `base`."""
