"""What one training step costs: one definition for every library that is measured.

anonymous   growth of RssAnon from before the first step to its peak, sampled every 0.5 ms in a thread. Sees all that
            the process takes: the waste of its allocator, and torch's own set-up at the first convolution, too.
tracked     largest sum of live storages that torch operators gave out during a step, without those that parameters and
            buffers had before it: so it is, like anonymous, what a step adds to the weights. Blind to what native code
            takes for itself, so it is never quoted alone.
activations as tracked, but without the gradients that parameters hold after the step.
CPU seconds of all threads of the process for one step, the least of several.

This file imports nothing of revedge, so that a peer's process can load it by its path and be measured with the very
same code without getting our allocator or kernels.
"""

import contextlib
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

INTERVAL_S = 0.0005


def rss_anon_bytes() -> int:
    """Return the resident anonymous bytes of this process.

    Raises:
        OSError: the kernel does not tell.
    """
    with open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith("RssAnon"):
                return int(line.split()[1]) * 1024
    raise OSError("no RssAnon in /proc/self/status")


@contextlib.contextmanager
def anonymous_peak(found: dict[str, Any]) -> Iterator[None]:
    """Sample the anonymous memory meanwhile; puts its growth to the peak into ``found`` as anon_peak_bytes."""
    gc.collect()
    start = top = rss_anon_bytes()
    done = threading.Event()

    def watch() -> None:
        nonlocal top
        while not done.is_set():
            top = max(top, rss_anon_bytes())
            time.sleep(INTERVAL_S)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    found["anon_peak_bytes"] = max(top, rss_anon_bytes()) - start


def cpu_seconds(step: Callable[[], object], repeats: int) -> float:
    """Return the least CPU seconds of ``repeats`` steps."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        step()
        times.append(time.process_time() - start)
    return min(times)


def tracked_peaks(step: Callable[[], object], net: "nn.Module") -> dict[str, int]:
    """Run a step and return tracked_peak_bytes, activation_peak_bytes, weights_bytes and gradients_bytes.

    Gradients are those that the parameters hold after the step. A weight's storage never counts, though operators give
    it out: a view of a weight, an update in place. Slow: not to be timed.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_flatten

    # Held to the end: an address that a step gives free must not come again for a storage that counts.
    held = [tensor.untyped_storage() for tensor in (*net.parameters(), *net.buffers())]
    weights = {storage._cdata: storage.nbytes() for storage in held}
    log = _Log(ignored=set(weights))

    class Tracker(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            out = func(*args, **(kwargs or {}))
            for tensor in tree_flatten(out)[0]:
                if isinstance(tensor, torch.Tensor):
                    log.see(tensor.untyped_storage())
            return out

    gc.collect()
    with Tracker():  # type: ignore[no-untyped-call]
        step()
    gradients = [p.grad.untyped_storage() for p in net.parameters() if p.grad is not None]
    own = {storage._cdata: storage.nbytes() for storage in gradients}
    return {
        "tracked_peak_bytes": log.peak_bytes(without=set()),
        "activation_peak_bytes": log.peak_bytes(without=log.now(own)),
        "weights_bytes": sum(weights.values()),
        "gradients_bytes": sum(own.values()),
    }


class _Log:
    """When each storage came, grew and went. A storage has a number of its own, because addresses come again."""

    def __init__(self, *, ignored: set[int]) -> None:
        self.ignored = ignored  # addresses
        self.live: dict[int, tuple[int, int, Any]] = {}  # address -> number, bytes, weak reference
        self.events: list[tuple[int, int]] = []  # number, bytes more or less
        self.count = 0

    def see(self, storage: Any) -> None:
        """Note a storage that an operator gave out."""
        key, size = storage._cdata, storage.nbytes()
        if key in self.ignored:
            return
        if key in self.live:
            number, before, alive = self.live[key]
            if size != before:
                self.events.append((number, size - before))
                self.live[key] = (number, size, alive)
            return
        number, self.count = self.count, self.count + 1
        self.events.append((number, size))
        self.live[key] = (number, size, weakref.ref(storage, lambda _: self._gone(key)))

    def _gone(self, key: int) -> None:
        number, size, _ = self.live.pop(key)
        self.events.append((number, -size))

    def now(self, keys: Any) -> set[int]:
        """Return the numbers of the storages that live at ``keys``."""
        return {self.live[key][0] for key in keys if key in self.live}

    def peak_bytes(self, *, without: set[int]) -> int:
        """Return the largest sum over time, leaving out the storages of these numbers."""
        now = peak = 0
        for number, size in self.events:
            if number not in without:
                now += size
                peak = max(peak, now)
        return peak
