"""The archive: every trajectory in HDF5 segments. The contract is in `base`."""
