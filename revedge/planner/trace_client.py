"""Asks the tracing process, and remembers its answers. Free of torch."""

import dataclasses
import json
import selectors
import subprocess
import tempfile
from collections.abc import Mapping
from typing import IO, Any

from revedge import allocator, child
from revedge.errors import DeviceError, UsageError
from revedge.planner.memory import Memory
from revedge.planner.process import fingerprint
from revedge.planner.setting import Setting
from revedge.user_code import ForeignError

_PATIENCE_S = 300.0


class TraceError(DeviceError):
    """A configuration that could not be traced: the model does not exist in this form, or its code failed."""


class TraceClient:
    """A tracing process, started at the first question that is not in the cache; close it, or use `with`.

    Args:
        page_bytes: size of a memory page where the training will be; None: as here.
    """

    def __init__(self, page_bytes: int | None = None) -> None:
        self.page_bytes = page_bytes or allocator.page_bytes()
        self._memory = Memory(f"traces-{fingerprint(page_bytes=self.page_bytes)}.json")
        self._process: subprocess.Popen[str] | None = None
        self._log: IO[str] | None = None
        self.asked = 0  # questions that the process had to answer

    def families(self) -> dict[str, list[str]]:
        """Return the models of each family."""
        found = self._ask("families", {"do": "families"})["families"]
        return {str(family): [str(name) for name in members] for family, members in found.items()}

    def trace(self, setting: Setting) -> dict[str, int]:
        """Return the bytes of `revedge.planner.trace_child.trace`.

        Raises:
            UsageError: the model does not exist, or not in this form.
            TraceError: its code failed.
        """
        asked = dataclasses.replace(setting, optimizer="adamw")
        known = self._ask(asked.key(), {"do": "trace", "setting": asked.to_json()})
        sgd_bytes = known.pop("sgd_bytes")
        if setting.optimizer == "sgd":
            # An optimizer's state is there before the first step and stays: it moves the peak up or down, nowhere else.
            known["peak_bytes"] += sgd_bytes - known["optimizer_bytes"]
            known["optimizer_bytes"] = sgd_bytes
        return known

    def geometry(self, setting: Setting) -> dict[str, Any]:
        """Return `revedge.planner.trace_child.geometry`: of a model at a size, whatever T, batch and strategy are.

        Raises:
            UsageError, TraceError: as `trace`.
        """
        parts = (setting.model, sorted(setting.model_options.items()), setting.in_shape)
        key = json.dumps(["geometry", *parts, setting.num_classes])
        return self._ask(key, {"do": "describe", "setting": setting.to_json()})

    def timeline(self, setting: Setting) -> dict[str, Any]:
        """Return what `revedge.planner.timeline.timeline` does; not remembered.

        Raises:
            UsageError, TraceError: as `trace`.
        """
        return self._now({"do": "timeline", "setting": setting.to_json()})

    def about(self, setting: Setting) -> dict[str, Any]:
        """Return what `revedge.planner.trace_child.about` does, of a model of the user's; not remembered.

        Raises:
            UsageError, TraceError: as `trace`.
        """
        return self._now({"do": "about", "setting": setting.to_json()})

    def _now(self, request: dict[str, Any]) -> dict[str, Any]:
        found = self._exchange(request)
        if "error" in found:
            kind = TraceError if found["kind"] == "failure" else UsageError
            raise kind(found["error"]) from _there(found)
        return found

    def ask(self, module: str, asked: Mapping[str, Any]) -> list[Any]:
        """Answer as `revedge.planner.process.answers` does, for modules that time: without another start of torch.

        Nothing, where the process ended over it; the next question starts another.
        """
        try:
            found = self._exchange({"do": "time", "module": module, "asked": asked})
        except DeviceError:
            self._end()
            return []
        return list(found.get("lines", ()))

    @property
    def process_id(self) -> int | None:
        """Of the tracing process; None where none runs."""
        return None if self._process is None else self._process.pid

    def close(self) -> None:
        """End the process and write the cache."""
        self._memory.save()
        self._end()

    def _end(self) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.close()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process.stdout.close()
            self._process = None
        if self._log is not None:
            self._log.close()
            self._log = None

    def __enter__(self) -> "TraceClient":
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def _ask(self, key: str, request: dict[str, Any]) -> dict[str, Any]:
        known = self._memory.get(key)
        if known is None:
            self.asked += 1
            known = self._exchange(request)
            if known.get("kind") == "failure":
                raise TraceError(
                    f"this configuration cannot be traced: {known['error']}"
                ) from _there(known)
            if "traceback" not in known:  # of the user's code, which may need something that comes
                self._memory.set(key, known)
        if "error" in known:
            raise UsageError(known["error"]) from _there(known)
        return dict(known)

    def _exchange(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._process is None:
            self._start()
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps({**request, "page_bytes": self.page_bytes}) + "\n")
            process.stdin.flush()
            with selectors.DefaultSelector() as selector:
                selector.register(process.stdout, selectors.EVENT_READ)
                line = process.stdout.readline() if selector.select(_PATIENCE_S) else ""
        except BrokenPipeError:
            line = ""
        if not line:
            process.kill()
            raise DeviceError(f"the tracing process ended without an answer: {self._last_words()}")
        found: dict[str, Any] = json.loads(line)
        return found

    def _start(self) -> None:
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            child.command("revedge.planner.trace_child"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=child.environment(**allocator.preload()),
            text=True,
        )

    def _last_words(self) -> str:
        assert self._log is not None
        assert self._process is not None
        self._process.wait(10)
        self._log.seek(0)
        lines = self._log.read().strip().splitlines()
        return lines[-1] if lines else f"exit status {self._process.returncode}"


def _there(answer: dict[str, Any]) -> ForeignError | None:
    """Return what an error in the tracing process was raised from."""
    return ForeignError(f"\n{answer['traceback']}") if "traceback" in answer else None
