"""Export: what was trained is what runs. See README.md in this folder for the file formats and the tolerances.

`revedge.export.runner` runs an exported ONNX file with numpy and onnxruntime alone; so importing this package imports
nothing. The other names load torch when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from revedge.export.inference import InferenceNet as InferenceNet
    from revedge.export.inference import inference_form as inference_form
    from revedge.export.manifest import Manifest as Manifest
    from revedge.export.modules import import_module as import_module
    from revedge.export.runner import StreamRunner as StreamRunner
    from revedge.export.writer import export_network as export_network

_HOMES = {
    "InferenceNet": "inference",
    "Manifest": "manifest",
    "StreamRunner": "runner",
    "export_network": "writer",
    "import_module": "modules",
    "inference_form": "inference",
}
__all__ = [
    "InferenceNet",
    "Manifest",
    "StreamRunner",
    "export_network",
    "import_module",
    "inference_form",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'revedge.export' has no attribute {name!r}")
        if _HOMES[name] not in ("manifest", "runner"):
            import revedge.need_torch  # noqa: F401
        return getattr(importlib.import_module(f"revedge.export.{_HOMES[name]}"), name)
