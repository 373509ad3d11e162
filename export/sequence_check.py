"""Does a sequence graph give what its own step gives, called once per time step?

Unoptimized, onnxruntime runs the same kernels on the same values in both, so the bits must be equal: a state that is
handed to the wrong neuron, a rest value or a mean that is off shows here, and there is no tolerance to hide in.
Optimized, the two may be compiled differently; whether they still agree is reported.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from revedge.errors import ExportError
from revedge.export.manifest import Manifest
from revedge.export.onnx_contained import contained_step
from revedge.export.parity import ParityReport
from revedge.export.probes import Array
from revedge.export.runner import open_session

if TYPE_CHECKING:
    import onnx


def compare_with_step(
    model: "onnx.ModelProto", manifest: Manifest, frames: list[Array], report: ParityReport
) -> None:
    """Compare ``model`` with its step; adds to ``report``.

    Args:
        model: of graph blocks, scan or unrolled.
        manifest: of the model.
        frames: sequences of several lengths and batches, each as the model takes it.
        report: gets ``sequence_identical``.

    Raises:
        ExportError: they differ without optimization.
    """
    step = contained_step(model, manifest).SerializeToString()
    for optimize in (False, True):
        whole = open_session(model.SerializeToString(), optimize=optimize)
        single = open_session(step, optimize=optimize)
        for x in frames:
            expected = _in_a_loop(single, manifest, x)
            found = (
                _blocks(whole, manifest, x) if manifest.graph == "blocks" else _at_once(whole, x)
            )
            same = all(map(np.array_equal, expected, found))
            if optimize:
                report.sequence_identical = report.sequence_identical and same
            elif not same:
                raise ExportError(
                    f"the {manifest.graph} graph does not give what its own step gives in a loop, for x of shape "
                    f"{x.shape}"
                )


def _in_a_loop(session: Any, manifest: Manifest, x: Array) -> list[Array]:
    """Logits of all steps and, as the graph has them, the last states or the mean logits."""
    frames = [x] * manifest.timesteps if manifest.static else list(x)
    states = _rest(manifest, frames[0].shape[0])
    names = ["logits", *(state.next for state in manifest.states)]
    every: list[Array] = []
    for frame in frames:
        logits, *new = session.run(names, {"x": frame, **states})
        states = dict(zip(states, new, strict=True))
        every.append(logits)
    if manifest.graph == "blocks":
        return [np.stack(every), *states.values()]
    total = every[0]
    for logits in every[1:]:
        total = total + logits
    return [np.stack(every), total / np.float32(len(every))]


def _at_once(session: Any, x: Array) -> list[Array]:
    found: list[Array] = session.run(["logits", "mean_logits"], {"x": x})
    return found


def _blocks(session: Any, manifest: Manifest, x: Array) -> list[Array]:
    """In two blocks, so that states cross from one call to the next."""
    cut = (len(x) + 1) // 2
    states = _rest(manifest, x.shape[1])
    names = ["logits", *(state.next for state in manifest.states)]
    every = []
    for block in (x[:cut], x[cut:]):
        if len(block):
            logits, *new = session.run(names, {"x": block, **states})
            states = dict(zip(states, new, strict=True))
            every.append(logits)
    return [np.concatenate(every), *states.values()]


def _rest(manifest: Manifest, batch: int) -> dict[str, Array]:
    return {s.name: np.full((batch, *s.shape), s.init, np.float32) for s in manifest.states}
