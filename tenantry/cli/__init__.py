"""The command line: thin clients of the daemon's API, and the daemon's start."""

import sys

from tenantry.process import early, init

# Here, because what the commands import takes a while, and memory.
init.stand_before(sys.argv[1:])
early.hear(sys.argv[1:])
