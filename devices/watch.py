"""The watch inside the trainer: resident bytes against the budget, and orders, between micro-batches and between units.

Between units it looks so seldom that it costs no more than `COST_SHARE` of a step, on any machine: after a look that
took 5 us the next comes 2 ms later, on a slow board later still.

Orders also come by a signal: Python runs its handler between two operators, so memory that is free is given back, or
the step given up, even while one unit takes seconds. Not so in the backward pass on a GPU, which has a thread of its
own: there the look between two units finds them.
"""

import os
import signal
import time
from collections.abc import Callable

from revedge import allocator
from revedge.devices import orders
from revedge.devices.meter import ProcessMeter
from revedge.devices.orders import Orders
from revedge.units import format_bytes

COST_SHARE = 1 / 400  # of the time between two looks between units
_SELDOM_S = 0.05  # a look that was interrupted must not blind the watch for long


class Watch:
    """Call it between micro-batches, `between_units` inside them; MemoryError when both processes are over the budget.

    Before it gives up it hands free heap pages back to the kernel.

    Attributes:
        looks, looked_s: how many looks were taken, and the seconds they took together.

    Args:
        budget_bytes: for the supervisor (the parent) and this process together.
        device_bytes: reserved on an accelerator, which counts as well.
        wanted: the supervisor's orders.
    """

    def __init__(
        self,
        budget_bytes: int,
        device_bytes: Callable[[], int] = lambda: 0,
        wanted: Orders | None = None,
    ) -> None:
        self.budget_bytes = budget_bytes
        self._device_bytes, self._wanted = device_bytes, wanted
        self._own, self._parent = ProcessMeter(), ProcessMeter(os.getppid())
        self._obeyed = orders.GO_ON
        self.looks, self.looked_s = 0, 0.0
        self._next_s = 0.0

    def now_bytes(self) -> int:
        """Return what counts against the budget at this moment."""
        return self._own.rss_bytes() + self._parent.rss_bytes() + self._device_bytes()

    def left_bytes(self) -> int:
        """Return what this process may still take."""
        return self.budget_bytes - self.now_bytes()

    def __call__(self) -> None:
        """Raise MemoryError if the budget is exceeded now, or the supervisor says so."""
        began_s = time.perf_counter()
        self._look()
        ended_s = time.perf_counter()
        spent_s = ended_s - began_s
        self.looks += 1
        self.looked_s += spent_s
        self._next_s = ended_s + min(spent_s / COST_SHARE, _SELDOM_S)

    def between_units(self) -> None:
        """Look, unless the last look was so short a while ago that this one would cost too much."""
        if time.perf_counter() >= self._next_s:
            self()

    def _look(self) -> None:
        if self._wanted is not None:
            self.obey()
        if self.now_bytes() > self.budget_bytes:
            allocator.trim()
            now = self.now_bytes()
            if now > self.budget_bytes:
                raise MemoryError(
                    f"{format_bytes(now)} in use, the budget is {format_bytes(self.budget_bytes)}"
                )

    def obey(self) -> None:
        """Do what is wanted and can be done anywhere: give back, give up (MemoryError)."""
        order = self._wanted.now() if self._wanted is not None else orders.GO_ON
        if order == self._obeyed:
            return
        if order == orders.GIVE_UP:
            raise MemoryError("the supervisor ended this step")
        self._obeyed = order
        if order != orders.GO_ON:
            allocator.trim()

    def paused(self) -> bool:
        """Return whether to hold still at this end of a step."""
        return self._wanted is not None and self._wanted.now() == orders.PAUSE

    def listen(self, *, listening: bool = True) -> None:
        """Obey by signal too, or no more. Ignored then, not without effect: Python forgets its handlers as it ends."""
        signal.signal(orders.SIGNAL, (lambda *_: self.obey()) if listening else signal.SIG_IGN)
