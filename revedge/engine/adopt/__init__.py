"""Memory strategies for a model that was written without the engine; see `revedge.engine.apply`."""

from revedge.engine.adopt.applied import Applied, apply
from revedge.engine.adopt.over_time import OverTime
from revedge.engine.adopt.report import Report, RunLine

__all__ = ["Applied", "OverTime", "Report", "RunLine", "apply"]
