"""The autograd side: spiking units, memory strategies, reversible runs and their checks. Read README.md first."""

from revedge.engine.coupling import Coupling
from revedge.engine.feed import Feed
from revedge.engine.residual import Residual
from revedge.engine.run import Run
from revedge.engine.strategy import STRATEGIES
from revedge.engine.unit import GRID_BITS, INPUT_GRID_BITS, Branch, GlobalMean, Unit

__all__ = [
    "GRID_BITS",
    "INPUT_GRID_BITS",
    "STRATEGIES",
    "Branch",
    "Coupling",
    "Feed",
    "GlobalMean",
    "Residual",
    "Run",
    "Unit",
]
