"""`python -m pinstripe`."""

import sys

from pinstripe.cli import main

sys.exit(main())
