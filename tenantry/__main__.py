"""`python -m tenantry`, and `python daemon.py` in a checkout: the command line."""

import sys

from tenantry.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
