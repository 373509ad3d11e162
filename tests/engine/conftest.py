"""Makes `engine_checks` importable to the tests beside it."""

import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).parent))
