"""Algorithms: how a batch improves the weights. The contract is in `base`."""
