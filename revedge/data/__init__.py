"""Data sets as cached uint8 frames; see README.md in this folder.

Importing this package needs numpy only. Recordings are read by a child process.
"""

from revedge.data.cache import FrameCache
from revedge.data.prepare import describe, prepare
from revedge.data.sources import NAMES, DatasetInfo

__all__ = ["NAMES", "DatasetInfo", "FrameCache", "describe", "prepare"]
