"""What all tests share: MPI may run as root in a container, and numeric libraries keep to one thread."""

import os

os.environ.setdefault("OMPI_ALLOW_RUN_AS_ROOT", "1")
os.environ.setdefault("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: tests are small, and several ranks share the cores
