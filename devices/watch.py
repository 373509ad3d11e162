"""The watch between micro-batches: resident bytes against the budget, and orders, for less than 5 us a look.

Orders also come in the middle of a step, by a signal: Python runs its handler between two operators, so memory that is
free is given back, or the step given up, without waiting for its end, and a step that no order meets pays nothing.
"""

import os
import signal
from collections.abc import Callable

from revedge import allocator
from revedge.devices import orders
from revedge.devices.meter import ProcessMeter
from revedge.devices.orders import Orders
from revedge.units import format_bytes


class Watch:
    """Call it between micro-batches; raises MemoryError when the two processes are over the budget.

    Before it gives up it hands free heap pages back to the kernel.

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

    def now_bytes(self) -> int:
        """Return what counts against the budget at this moment."""
        return self._own.rss_bytes() + self._parent.rss_bytes() + self._device_bytes()

    def left_bytes(self) -> int:
        """Return what this process may still take."""
        return self.budget_bytes - self.now_bytes()

    def __call__(self) -> None:
        """Raise MemoryError if the budget is exceeded now, or the supervisor says so."""
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
