"""`python -m bnfree`."""

import sys

from bnfree.lightning_modules.cli import main

if __name__ == "__main__":
    sys.exit(main())
