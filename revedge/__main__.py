"""``python -m revedge`` is the command ``revedge``."""

import sys

from revedge.cli.main import main

sys.exit(main())
