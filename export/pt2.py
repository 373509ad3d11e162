"""`.pt2`: the step as an exported program, torch's own successor of TorchScript. Loads in plain torch.

It is an interchange format (AOTInductor and ExecuTorch begin from it), not a fast runtime. It holds the pure step; the
batch is dynamic. Unlike TorchScript it is supported on Python 3.14 and later.
"""

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from revedge.errors import ExportError
from revedge.export.cells import FORCE, WATCH
from revedge.export.inference import InferenceNet
from revedge.export.manifest import Manifest
from revedge.export.probes import Array, FileProbe, ForcedOrder, Seen, TrainedProbe
from revedge.export.torchscript import METADATA_FILE

_EXAMPLE_BATCH = 2  # 0 and 1 would be fixed as constants
_MOST = 1 << 16


def write_pt2(form: InferenceNet, manifest: Manifest, path: Path) -> None:
    """Write the step of ``form``: ``forward(x, states: list) -> (logits, states)``.

    Args:
        form: the PLAIN inference form of a network.
        manifest: goes into the file as ``revedge.json``.
        path: of the file; written completely or not at all.

    Time: a few seconds. Raises:
        ExportError: a layer that torch.export cannot trace.
    """
    batch = _EXAMPLE_BATCH
    x = torch.zeros(batch, *manifest.in_shape)
    states = [torch.full((batch, *s.shape), s.init) for s in manifest.states]
    free = torch.export.Dim("batch", min=1, max=_MOST)
    shapes = ({0: free}, [{0: free} for _ in states])
    temporary = path.with_name(f".{path.name}.part.pt2")
    try:
        with _notes_silenced():
            program = torch.export.export(form, (x, states), dynamic_shapes=shapes)
            text = json.dumps(manifest.to_dict(), indent=1)
            torch.export.save(program, str(temporary), extra_files={METADATA_FILE: text})
        os.replace(temporary, path)
    except (RuntimeError, TypeError, ValueError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), "no reason given")
        raise ExportError(
            f"torch.export cannot trace this network ({reason.strip()[:200]}); use --format onnx"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def read_pt2(path: Path) -> tuple[Any, dict[str, Any]]:
    """Load a file on the CPU; return its step, callable as ``step(x, states)``, and its metadata.

    Raises:
        ExportError: damaged, or without metadata of revedge.
    """
    extra = {METADATA_FILE: ""}
    try:
        with _notes_silenced():
            module = torch.export.load(str(path), extra_files=extra).module()
        metadata: dict[str, Any] = json.loads(extra[METADATA_FILE])
    except Exception as error:  # zip, JSON and torch's own errors have no common base
        line = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ExportError(f"{path} is damaged, or not a .pt2 file of revedge: {line}") from None
    return module, metadata


class Pt2Probe(FileProbe):
    """A .pt2 file; its twins are the same forms in eager PyTorch.

    Args:
        path: of the file.
        trained: gives the twins.
    """

    def __init__(self, path: Path, trained: TrainedProbe) -> None:
        self._file = read_pt2(path)[0]
        self._watch, self._force = trained.form(WATCH), trained.form(FORCE)
        self._order = ForcedOrder(self._force)

    def shipped(self, x: Array, states: list[Array]) -> tuple[Array, list[Array]]:
        """See `FileProbe`."""
        return call_step(self._file, x, states)

    def watched(self, x: Array, states: list[Array]) -> Seen:
        """See `FileProbe`."""
        logits, given = call_step(self._watch, x, states)
        return Seen(logits, given[0::3], given[1::3], given[2::3])

    def forced(self, x: Array, given: Seen, states: list[Array]) -> Seen:
        """See `FileProbe`."""
        return self._order.seen(*call_step(self._force, x, self._order.carry(given, states)))


def call_step(step: Any, x: Array, carry: list[Array]) -> tuple[Array, list[Array]]:
    """One time step on numpy arrays."""
    with torch.no_grad():
        logits, given = step(torch.from_numpy(x), [torch.from_numpy(v) for v in carry])
    tensors: list[Tensor] = [logits, *given]
    first, *others = [value.contiguous().numpy() for value in tensors]
    return first, others


@contextmanager
def _notes_silenced() -> Iterator[None]:
    """Silence what torch.export says about its own future; warnings of anything else still show."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\..*|copyreg")
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\..*")
        yield
