"""`python -m substyle`."""

import sys

if not sys.flags.safe_path:
    del sys.path[0]  # the current folder, whose files would replace installed modules

from substyle.engine.cli import main  # noqa: E402

sys.exit(main())
