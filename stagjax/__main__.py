"""`python -m stagjax` is the same command as `stagjax`."""

import sys

from stagjax.cli import main

sys.exit(main())
