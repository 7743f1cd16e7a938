"""`python -m substyle`."""

import sys

from substyle.engine.cli import main

sys.exit(main())
