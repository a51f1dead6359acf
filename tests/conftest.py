"""What all tests share: MPI may run as root in a container, numeric libraries keep to one thread, and INT is heard."""

import os
import signal

os.environ.setdefault("OMPI_ALLOW_RUN_AS_ROOT", "1")
os.environ.setdefault("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: tests are small, and several ranks share the cores
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and so would all they start
