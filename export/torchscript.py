"""TorchScript: script -> freeze -> save. The files load in plain torch, with nothing of revedge installed.

TorchScript is deprecated in torch but still its only format that old board images read. Its warnings, and no others,
are silenced here; Python 3.14 and later, which it does not support, are refused.
"""

import json
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from revedge.errors import ExportError
from revedge.export.inference import InferenceNet
from revedge.export.manifest import Manifest

METADATA_FILE = "revedge.json"


class StreamNet(nn.Module):
    """The step with its states inside: ``reset(batch)``, ``forward(x)``, ``sequence(x)``."""

    static: Final[bool]
    timesteps: Final[int]
    shapes: list[list[int]]
    inits: list[float]
    states: list[Tensor]

    def __init__(self, step: InferenceNet, manifest: Manifest) -> None:
        super().__init__()
        self.step = step
        self.static = manifest.static
        self.timesteps = manifest.timesteps
        self.shapes = [list(state.shape) for state in manifest.states]
        self.inits = [state.init for state in manifest.states]
        # Batch 0: a stream that was never reset answers nothing instead of something wrong.
        self.states = [torch.zeros([0, *shape]) for shape in self.shapes]

    @torch.jit.export
    def reset(self, batch: int) -> None:
        """Put ``batch`` streams at rest."""
        states: list[Tensor] = []
        for index in range(len(self.shapes)):
            states.append(torch.full([batch] + self.shapes[index], self.inits[index]))
        self.states = states

    def forward(self, x: Tensor) -> Tensor:
        """One step of every stream: ``x`` ``[B, C, H, W]`` -> logits ``[B, K]`` of this step."""
        if len(self.states) > 0:
            batch = self.states[0].size(0)
            if x.size(0) != batch:
                raise ValueError(
                    "the batch of x is not that of the states; call reset(batch) first"
                )
        answer: tuple[Tensor, list[Tensor]] = self.step(x, self.states)
        self.states = answer[1]
        return answer[0]

    @torch.jit.export
    def sequence(self, x: Tensor) -> Tensor:
        """Several steps from the present state: mean logits ``[B, K]``.

        ``x`` is ``[T, B, C, H, W]``, or for a static model the image ``[B, C, H, W]``.
        """
        steps = self.timesteps if self.static else x.size(0)
        total = self.forward(x if self.static else x[0])
        for t in range(1, steps):
            total = total + self.forward(x if self.static else x[t])
        return total / steps


def write_torchscript(form: InferenceNet, manifest: Manifest, step: Path, stream: Path) -> None:
    """Write the pure step to ``step`` and the stateful wrapper to ``stream``.

    Args:
        form: the PLAIN inference form of a network.
        manifest: goes into both files as ``revedge.json``.
        step: ``forward(x, states: List[Tensor]) -> (logits, states)``.
        stream: ``reset(batch)``, ``forward(x)``, ``sequence(x)``.

    Raises:
        ExportError: Python 3.14 or later, or a layer that TorchScript cannot compile.
    """
    for module, path, graph, kept in (
        (form, step, "step", []),
        (StreamNet(form, manifest), stream, "stream", ["reset", "sequence"]),
    ):
        text = json.dumps({**manifest.to_dict(), "graph": graph, "opset": None}, indent=1)
        scripted = compile_script(module, kept)
        # torch takes the name inside the archive from the path, so the final name is written to a folder's temporary.
        temporary = path.with_name(f".{path.name}.part")
        with deprecations_silenced():
            torch.jit.save(scripted, str(temporary), _extra_files={METADATA_FILE: text})
        os.replace(temporary, path)


def compile_script(module: nn.Module, kept: list[str] | None = None) -> torch.jit.ScriptModule:
    """Script and freeze ``module``; methods in ``kept`` survive the freezing.

    Raises:
        ExportError: Python 3.14 or later, or something that TorchScript cannot compile.
    """
    check_python()
    try:
        with deprecations_silenced():
            scripted = torch.jit.script(module.eval())
            frozen: torch.jit.ScriptModule = torch.jit.freeze(
                scripted, preserved_attrs=kept or None
            )
            return frozen
    except (RuntimeError, OSError, TypeError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), "no reason given")
        raise ExportError(
            f"TorchScript cannot compile this network ({reason.strip()}); use --format onnx, or layers of torch.nn"
        ) from None


def read_torchscript(path: Path) -> tuple[torch.jit.ScriptModule, dict[str, Any]]:
    """Load a file on the CPU and return it with its metadata.

    Raises:
        ExportError: damaged, or without metadata of revedge.
    """
    extra = {METADATA_FILE: ""}
    try:
        with deprecations_silenced():
            module = torch.jit.load(str(path), map_location="cpu", _extra_files=extra)
        metadata: Any = json.loads(extra[METADATA_FILE])
    except (RuntimeError, ValueError, RecursionError) as error:
        raise ExportError(
            f"{path} is damaged, or not a TorchScript file of revedge: {(str(error).splitlines() or [''])[0][:200]}"
        ) from None
    Manifest.from_dict(metadata if isinstance(metadata, dict) else {}, str(path))
    return module, dict(metadata)


def check_python() -> None:
    """Raise ExportError where TorchScript is not supported."""
    if sys.version_info >= (3, 14):
        found = ".".join(str(part) for part in sys.version_info[:2])
        raise ExportError(
            f"TorchScript is not supported on Python {found}; use --format onnx, or Python 3.13 or older"
        )


@contextmanager
def deprecations_silenced() -> Iterator[None]:
    """Silence the DeprecationWarnings of ``torch.jit`` and no others."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore",
            message=r"`torch\.jit\.\w+` is (deprecated|not supported)",
            category=DeprecationWarning,
        )
        yield
