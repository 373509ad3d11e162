"""Whether an open session takes and gives what the metadata of its file declare. No torch."""

from typing import Any

from revedge.errors import ExportError
from revedge.export.manifest import Manifest

_GRAPHS = ("step", "blocks", "scan", "unrolled")


def read_manifest(session: Any, source: str) -> Manifest:
    """Return the metadata of an open session.

    Raises:
        ExportError: none, damaged, of another schema, or a graph that onnxruntime cannot step through.
    """
    manifest = Manifest.from_strings(session.get_modelmeta().custom_metadata_map, source)
    if manifest.graph not in _GRAPHS:
        raise ExportError(
            f"{source} is a {manifest.graph[:20]!r} graph; the runner knows {', '.join(_GRAPHS)}"
        )
    return manifest


def require_declared(session: Any, manifest: Manifest, source: str) -> None:
    """Raise unless the names, and the shapes per stream, of inputs and outputs are those of ``manifest``.

    Raises:
        ExportError: others; names the first that differs.
    """
    taken: dict[str, tuple[int, ...]] = {"x": manifest.in_shape}
    given: dict[str, tuple[int, ...]] = {"logits": (manifest.num_classes,)}
    if manifest.graph in ("step", "blocks"):
        taken |= {state.name: state.shape for state in manifest.states}
        given |= {state.next: state.shape for state in manifest.states}
    else:
        given["mean_logits"] = (manifest.num_classes,)
    for values, told, verb in (
        (session.get_inputs(), taken, "takes"),
        (session.get_outputs(), given, "gives"),
    ):
        if {one.name for one in values} != set(told):
            raise ExportError(
                f"{source} has other inputs or outputs than its metadata say; export the model again"
            )
        for one in values:
            found = tuple(one.shape[-len(told[one.name]) :])
            if found != told[one.name]:
                raise ExportError(
                    f"{source} {verb} {one.name} of shape {found} per stream, its metadata say {told[one.name]}; "
                    "export the model again"
                )
