"""Sessions of onnxruntime with the settings for streaming. Needs numpy and onnxruntime, and nothing else: no torch."""

from pathlib import Path
from typing import Any

from revedge.errors import ExportError, UsageError
from revedge.export.onnx_bytes import metadata_value, outline, require_complete, require_onnx

_PROVIDER = "ExecutionProvider"
CPU = f"CPU{_PROVIDER}"
_FOLDER = "session.model_external_initializers_file_folder_path"
_FOLDER_FROM = (1, 22)  # version of onnxruntime that knows it


def open_session(
    model: Path | bytes,
    threads: int = 1,
    *,
    optimize: bool = True,
    low_memory: bool = False,
    provider: str = CPU,
) -> Any:
    """Return an onnxruntime session with the settings for streaming: no spinning, one operator at a time.

    Raises:
        UsageError: no file of that name, a file of another format, or a provider that onnxruntime does not have here.
        ExportError: it keeps data elsewhere, or onnxruntime cannot read it.
    """
    import onnxruntime as ort

    if isinstance(model, Path):
        require_onnx(model)
        require_complete(model)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    # A plan of all tensors in one block takes 3 MB more. A step gains no time by it, a Scan of them a fiftieth.
    options.enable_mem_pattern = (
        metadata_value(model, "graph") not in ("", "step") and not low_memory
    )
    # Operators as they stand in the file: a state is made while its membrane is still in the cache, not at the end.
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    # Weights of 8 bits are multiplied out once. Otherwise they are in every step, and convolutions, whose weights are
    # then no constants, run in the plain layout: a third slower.
    options.add_session_config_entry("session.disable_quant_qdq", "0" if low_memory else "1")
    if low_memory:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    provider = provider_named(provider)
    if isinstance(model, bytes):
        return _session(model, options, "the model", provider)
    if _version(ort.__version__) < _FOLDER_FROM:
        return _session(str(model), options, str(model), provider)
    # Weights stay in the file, which is mapped while they are needed: otherwise onnxruntime holds them twice while it
    # loads, as they are and in the layout of its convolutions.
    place = model.resolve()
    options.add_session_config_entry(_FOLDER, str(place.parent))
    before = _identity(place)
    session = _session(outline(place), options, str(model), provider)
    if _identity(place) != before:
        raise ExportError(f"{model} was replaced while it was opened; open it again")
    return session


def provider_named(name: str) -> str:
    """Return onnxruntime's name of an execution provider; ``cuda`` and ``CUDAExecutionProvider`` are the same.

    Raises:
        UsageError: this onnxruntime has none of that name; names those that it has.
    """
    import onnxruntime as ort

    found: list[str] = ort.get_available_providers()
    for one in found:
        if name.lower() in (one.lower(), one.removesuffix(_PROVIDER).lower()):
            return one
    raise UsageError(
        f"provider {name!r} is not in this onnxruntime; it has {', '.join(found)} (GPUs need another wheel of it)"
    )


def _session(source: str | bytes, options: Any, name: str, provider: str) -> Any:
    import onnxruntime as ort

    kind = type("Session", (_NoFallback, ort.InferenceSession), {})
    try:
        session = kind(source, options, providers=list(dict.fromkeys([provider, CPU])))
    except Exception as error:  # onnxruntime's errors have no common base
        raise ExportError(
            f"{name} is damaged, or not an ONNX model: {first_line(error)}"
            if provider == CPU
            else f"{name} does not load on {provider}: {first_line(error)}"
        ) from None
    if (
        session.get_providers()[0] != provider
    ):  # a library of the provider is missing: onnxruntime goes on without
        raise ExportError(f"{provider} cannot be used on this machine; ask for {CPU}")
    return session


class _NoFallback:
    """Before the session of onnxruntime: no second try after an error, of loading or of running.

    It would print to standard output, where answers are, and go on with another provider than was asked for. Only
    the newest versions have an argument for it, which older ones ignore.
    """

    @property
    def _enable_fallback(self) -> bool:
        return False

    @_enable_fallback.setter
    def _enable_fallback(self, value: bool) -> None:
        del value


def _identity(model: Path) -> tuple[int, ...]:
    told = model.stat()
    return told.st_dev, told.st_ino, told.st_size, told.st_mtime_ns


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2] if part.isdigit())


def first_line(error: Exception) -> str:
    """Return what onnxruntime says went wrong, without the place in its source that follows."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
