"""Shared by all tests: one thread, so that tests are quick on a busy machine. Set before torch is imported."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
