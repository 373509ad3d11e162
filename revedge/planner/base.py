"""The resident bytes of trainer and supervisor beside what is traced: measured on this machine, then remembered.

What torch takes depends on the code that a network runs: on its family, and on how oneDNN computes its convolutions.
So there is a base for each, measured when it is first asked for. Forms of convolutions, and what they took here:

    none     too small for oneDNN, or there is none; -9 MiB
    blocked  by kernels made for each shape
    narrow   one of them as a matrix product, for which code is generated; +4.5 MiB
"""

import json
import re
import subprocess
from typing import Any

from revedge import allocator, child
from revedge.errors import DeviceError
from revedge.planner.memory import Memory
from revedge.planner.process import fingerprint
from revedge.user_code import is_user_model

_PATIENCE_S = 300.0


class Base:
    """Resident bytes of bare processes on this machine, with ``threads`` CPU threads on ``device``.

    Each figure takes some 4 s the first time it is asked for on a machine. ``context_bytes``: what a GPU that is not
    here takes for its driver and libraries; it is added to what the trainer takes here without it.
    """

    def __init__(self, threads: int, device: str, context_bytes: int | None) -> None:
        self._threads, self._device = threads, device if context_bytes is None else "cpu"
        self._context_bytes = context_bytes or 0
        self._memory = Memory("base.json", limit=5_000)
        self._asked: dict[tuple[str, ...], int] = {}

    @property
    def supervisor_bytes(self) -> int:
        """Of the process beside the trainer, which has no torch.

        Raises:
            DeviceError: a measuring process failed.
        """
        return self._known("supervisor")

    def trainer_bytes(
        self,
        model: str,
        form: str = "blocked",
        precision: str = "float32",
        code_sha256: str | None = None,
    ) -> int:
        """Of the trainer that has loaded torch and trained the smallest network of the family of ``model``.

        Args:
            model: name of a network.
            form: of its convolutions: "none", "blocked" or "narrow".
            precision: of the plan; code for another one than float32 takes some MiB more.
            code_sha256: of code of the user's, whose imports belong to the base.

        Raises:
            DeviceError: as `supervisor_bytes`.
        """
        family = family_of(model)
        arguments = ("trainer", str(self._threads), self._device, family, form, precision)
        known = self._known(*arguments, code_sha256=code_sha256)
        return known + self._context_bytes

    def _known(self, *arguments: str, code_sha256: str | None = None) -> int:
        if arguments not in self._asked:
            code = {} if code_sha256 is None else {"code": code_sha256}
            key = fingerprint(arguments=arguments, **code)
            known: dict[str, Any] | None = self._memory.get(key)
            if known is None:
                # One run: they differ by 100 KiB, which is in the slack.
                known = {"rss_bytes": probe(*arguments)}
                self._memory.set(key, known)
                self._memory.save()
            self._asked[arguments] = int(known["rss_bytes"])
        return self._asked[arguments]


def measure(threads: int, device: str = "cpu", *, context_bytes: int | None = None) -> Base:
    """Return the base of trainings with ``threads`` CPU threads on ``device``."""
    return Base(threads, device, context_bytes)


def family_of(model: str) -> str:
    """Return the family that ``model`` names: what it begins with, up to its numbers; code of the user's is its own."""
    if is_user_model(model):
        return model
    found = re.match(r"[a-z]+(-[a-z]+)*", model)
    return found[0] if found else model


def probe(*arguments: str) -> int:
    """Measure resident bytes now, in a child: ``"supervisor"``, or ``"trainer"`` with threads, device, family, form
    and precision.

    Raises:
        DeviceError: it failed.
    """
    with child.same_addresses():  # as the trainer is started
        done = subprocess.run(
            child.command("revedge.planner.base_probe", *arguments),
            capture_output=True,
            env=child.environment(**allocator.preload()),
            text=True,
            check=False,
            timeout=_PATIENCE_S,
        )
    try:
        return int(json.loads(done.stdout.splitlines()[-1])["rss_bytes"])
    except (ValueError, IndexError, KeyError):
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise DeviceError(
            f"the memory of a bare {arguments[0]} could not be measured: {last}"
        ) from None
