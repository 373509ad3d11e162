"""Decides what a training does when others take the machine's memory. Numbers in, an order out; reads nothing itself.

    calm --too little left--> giving back --still too little--> paused --enough for the peak again--> calm
                                   |                               |
                                   +--enough--> calm               +--the limit has passed--> gives up

"Too little" is less than the reserve that must stay with the system, or tasks that stand still for memory (PSI): on a
board with zram the system stalls long before MemAvailable is small.
"""

from dataclasses import dataclass

from revedge.devices import orders

GIVING_S = 0.3  # what was given back shows in MemAvailable after a moment
PAUSE_LIMIT_S = 120.0
MOST_STALLED_PERCENT = 20.0  # of the last ten seconds; the system is unusable at such a share


@dataclass(frozen=True)
class Look:
    """What the machine and the training look like at one moment."""

    now_s: float  # monotonic
    available_bytes: int  # what the machine has left
    stalled_percent: float  # time in which every task waited for memory, of the last 10 s
    training_bytes: int  # of supervisor and trainer, now
    peak_bytes: int  # what they will take again when a step runs


class Pressure:
    """The state between two looks.

    Args:
        reserve_bytes: what must stay with the system.
        pause_limit_s: how long to wait for memory before giving up.
    """

    def __init__(self, reserve_bytes: int, pause_limit_s: float = PAUSE_LIMIT_S) -> None:
        self.reserve_bytes, self.pause_limit_s = reserve_bytes, pause_limit_s
        self.order = orders.GO_ON
        self._since_s = 0.0

    def look(self, look: Look) -> int:
        """Return what the trainer is to do now, one of `orders`."""
        stalled = look.stalled_percent > MOST_STALLED_PERCENT
        pressed = stalled or look.available_bytes < self.reserve_bytes
        spent_s = look.now_s - self._since_s
        if self.order == orders.GO_ON and pressed:
            self._become(orders.GIVE_BACK, look.now_s)
        elif self.order == orders.GIVE_BACK and spent_s >= GIVING_S:
            self._become(orders.PAUSE if pressed else orders.GO_ON, look.now_s)
        elif self.order == orders.PAUSE:
            missing = look.peak_bytes - look.training_bytes
            if not stalled and look.available_bytes >= self.reserve_bytes + max(0, missing):
                self._become(orders.GO_ON, look.now_s)
            elif spent_s >= self.pause_limit_s:
                self._become(orders.GIVE_UP, look.now_s)
        return self.order

    def reset(self) -> None:
        """Begin calm: there is a new trainer."""
        self.order = orders.GO_ON

    def _become(self, order: int, now_s: float) -> None:
        self.order, self._since_s = order, now_s
