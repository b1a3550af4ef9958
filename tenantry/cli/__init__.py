"""The command line: thin clients of the daemon's API, and the daemon's start."""

import sys

from tenantry.process import early

# Here, because what the commands import takes a while.
early.hear(sys.argv[1:])
