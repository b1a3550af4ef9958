"""The command line: thin clients of the daemon's API, and the daemon's start."""

import sys

from tenantry.process import startup_signals

# Before the imports of the commands, which take time and memory.
startup_signals.stand_before(sys.argv[1:])
startup_signals.hear(sys.argv[1:])
