"""Emulators: what is stepped. The contracts are in `base`."""
