"""Models: networks with a policy and a value. The contract is in `base`."""
