"""The supervisor's eyes and hand: memory of both processes and of the machine, and orders to the trainer.

Over the budget (resident and swapped bytes): free memory is given back; if that is not enough the step is given up.
A trainer that does not give up when told to (it hangs, or is stopped) is killed.
Too little left on the machine, because others take it: see pressure.py.
"""

import time
from collections.abc import Callable

from revedge.devices import admission, meter, orders
from revedge.devices.orders import Orders
from revedge.devices.pressure import Look, Pressure
from revedge.units import format_bytes

SAMPLE_S = 0.05  # what happens between two samples is in the kernel's own peak of the trainer
_MACHINE_EVERY = 2  # samples; MemAvailable and its like cost more to read than a process
_OVER_S = 0.15  # over the budget for so long after giving back: given up
_OBEYS_S = 10.0  # a trainer that was to give up and is still there: killed

Say = Callable[[str], None]


class Guard:
    """Watches one training; `sample` it every `SAMPLE_S`.

    Args:
        budget_bytes: for supervisor and trainer together.
        say: takes what the user must know.
    """

    def __init__(self, budget_bytes: int, say: Say) -> None:
        self.budget_bytes, self._say = budget_bytes, say
        self.meter = meter.PeakMeter()
        self.orders = Orders()
        self.pressure = Pressure(admission.running_reserve_bytes())
        self.predicted_bytes = 0
        self.reason = ""  # why a step was given up
        self.others = False  # that was for what others take
        self._pid: int | None = None  # of the trainer once it listens
        self._over_s: float | None = None
        self._given_up_s = 0.0
        self._samples = 0

    @property
    def order(self) -> int:
        """What the trainer is to do now."""
        return self.orders.now()

    @property
    def pressed(self) -> bool:
        """Whether others had left the machine too little memory, at the last look."""
        return self.pressure.order != orders.GO_ON

    def follow(self, pid: int, predicted_bytes: int) -> None:
        """Watch the trainer `pid`, whose peak was predicted, from now on."""
        self.reason, self.others, self._over_s = "", False, None
        self.predicted_bytes = predicted_bytes
        self.pressure.reset()
        self.orders.give(orders.GO_ON, None)
        self.meter.follow(pid)

    def started(self, pid: int) -> None:
        """The trainer listens to the signal from now on; before, it would end it."""
        self._pid = pid
        self.orders.give(self.order, pid)

    def unfollow(self, peak_bytes: int) -> None:
        """The trainer has ended with this resident peak."""
        self.meter.add_trainer_peak(peak_bytes)
        self.meter.unfollow()
        self._pid = None

    def sample(self) -> int:
        """Look at everything, give an order if there is need, and return the bytes of both processes."""
        now_s, now_bytes = time.monotonic(), self.meter.sample()
        if self.order == orders.GIVE_UP:  # until this trainer has ended
            if now_s - self._given_up_s > _OBEYS_S:
                self.meter.kill()
            return now_bytes
        if self._samples % _MACHINE_EVERY == 0:
            self._look_at_machine(now_s)
        self._samples += 1
        order = max(self._order_of_budget(now_s, now_bytes), self.pressure.order)
        if order != self.order:
            self._given_up_s = now_s
            self._tell(order)
            self.orders.give(order, self._pid)
        return now_bytes

    def close(self) -> None:
        """Let go of the page of orders."""
        self.orders.close()

    def _order_of_budget(self, now_s: float, now_bytes: int) -> int:
        if now_bytes <= self.budget_bytes:
            self._over_s = None
            return orders.GO_ON
        if self._over_s is None:
            self._over_s = now_s
        if now_s - self._over_s < _OVER_S:
            return orders.GIVE_BACK
        swapped = self.meter.swap_bytes
        part = f", {format_bytes(swapped)} of it in swap" if swapped else ""
        self.reason = self.reason or (
            f"{format_bytes(now_bytes)} in use{part}, the budget is {format_bytes(self.budget_bytes)}"
        )
        return orders.GIVE_UP

    def _look_at_machine(self, now_s: float) -> None:
        available = meter.available_bytes()
        look = Look(
            now_s=now_s,
            available_bytes=available,
            stalled_percent=meter.stalled_percent(),
            training_bytes=self.meter.now_bytes,
            peak_bytes=max(self.predicted_bytes, self.meter.session_peak_bytes),
        )
        if self.pressure.look(look) == orders.GIVE_UP and not self.reason:
            self.others = True
            self.reason = (
                f"other programs left the machine {format_bytes(available)} for "
                f"{self.pressure.pause_limit_s:.0f} s"
            )

    def _tell(self, order: int) -> None:
        if order == orders.PAUSE:
            self._say(
                f"paused: other programs left the machine {format_bytes(meter.available_bytes())}, "
                f"{format_bytes(self.pressure.reserve_bytes)} are to stay with the system; waiting for more, at most "
                f"{self.pressure.pause_limit_s:.0f} s"
            )
        elif self.order == orders.PAUSE and order < orders.PAUSE:
            self._say("the machine has memory again; training goes on")
