"""The kernel's table of waiting threads is large enough for thousands of them."""

import subprocess
import sys

ASK = """
import ctypes, threading
from tenantry.process.threads import WAITING_SLOTS, allow_many_waiting_threads

helped = allow_many_waiting_threads()
threading.Thread(target=print).start()  # from the second thread on the kernel has a table anyway
slots = ctypes.CDLL(None).prctl(78, 2, 0, 0, 0)
assert slots == WAITING_SLOTS if helped else slots <= 0, (helped, slots)
"""


def test_it_is_as_large_as_was_asked_for_wherever_the_kernel_has_one_for_each_process() -> None:
    done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
