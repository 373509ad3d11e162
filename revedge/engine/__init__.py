"""The autograd side: spiking units, memory strategies, reversible runs and their checks. Read README.md first."""

import revedge.need_torch  # noqa: F401
from revedge.engine.adopt import Applied, OverTime, apply
from revedge.engine.attention import SpikeAttention
from revedge.engine.chain import Chain
from revedge.engine.coupling import Coupling
from revedge.engine.feed import Feed
from revedge.engine.fork import Fork, Forks
from revedge.engine.layers import Twice, Voting
from revedge.engine.look import look_between_units
from revedge.engine.repeat import Repeat
from revedge.engine.residual import Residual
from revedge.engine.run import Run, carry
from revedge.engine.settings import SetsRuns, StrategySettings
from revedge.engine.strategy import STRATEGIES
from revedge.engine.unit import GRID_BITS, INPUT_GRID_BITS, Branch, GlobalMean, Unit
from revedge.engine.update import update_in_backward

__all__ = [
    "GRID_BITS",
    "INPUT_GRID_BITS",
    "STRATEGIES",
    "Applied",
    "Branch",
    "Chain",
    "Coupling",
    "Feed",
    "Fork",
    "Forks",
    "GlobalMean",
    "OverTime",
    "Repeat",
    "Residual",
    "Run",
    "SetsRuns",
    "SpikeAttention",
    "StrategySettings",
    "Twice",
    "Unit",
    "Voting",
    "apply",
    "carry",
    "look_between_units",
    "update_in_backward",
]
