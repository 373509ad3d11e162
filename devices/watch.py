"""The watch between micro-batches: resident bytes against the budget, for less than 5 us a look."""

import os
from collections.abc import Callable

from revedge import allocator
from revedge.devices.meter import ProcessMeter
from revedge.units import format_bytes


class Watch:
    """Call it between micro-batches; raises MemoryError when the two processes are over the budget.

    Before it gives up it hands free heap pages back to the kernel.

    Args:
        budget_bytes: for the supervisor (the parent) and this process together.
        device_bytes: reserved on an accelerator, which counts as well.
    """

    def __init__(self, budget_bytes: int, device_bytes: Callable[[], int] = lambda: 0) -> None:
        self.budget_bytes = budget_bytes
        self._device_bytes = device_bytes
        self._own, self._parent = ProcessMeter(), ProcessMeter(os.getppid())

    def now_bytes(self) -> int:
        """Return what counts against the budget at this moment."""
        return self._own.rss_bytes() + self._parent.rss_bytes() + self._device_bytes()

    def left_bytes(self) -> int:
        """Return what this process may still take."""
        return self.budget_bytes - self.now_bytes()

    def __call__(self) -> None:
        """Raise MemoryError if the budget is exceeded now."""
        if self.now_bytes() > self.budget_bytes:
            allocator.trim()
            now = self.now_bytes()
            if now > self.budget_bytes:
                raise MemoryError(
                    f"{format_bytes(now)} in use, the budget is {format_bytes(self.budget_bytes)}"
                )
