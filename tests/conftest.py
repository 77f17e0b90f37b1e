"""Shared by all tests: one thread, so that tests are quick on a busy machine (set before torch is imported), and Ctrl-C
as Python has it.

A shell that starts a command in the background lets it ignore Ctrl-C, and Python leaves that as it is.
"""

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")
signal.signal(signal.SIGINT, signal.default_int_handler)
