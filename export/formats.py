"""What `revedge export` can write, and the choices that go with it. No torch, no onnx."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from revedge.errors import UsageError
from revedge.export.onnx_builder import OPSETS
from revedge.export.targets import TARGETS, Target, target_named

# format -> the files it writes
FILES = {
    "torchscript": ("model.step.pt", "model.stream.pt"),
    "onnx": ("model.onnx",),
    "onnx-scan": ("model.scan.onnx",),
    "onnx-blocks": ("model.blocks.onnx",),
    "onnx-unrolled": ("model.unrolled.onnx",),
    "pt2": ("model.pt2",),
    "nir": ("model.nir",),
}
FORMATS = tuple(FILES)
DEFAULT_FORMATS = ("torchscript", "onnx")
# format -> the graph in its file, see onnx_graph.py
GRAPH_OF = {
    "onnx": "step",
    "onnx-scan": "scan",
    "onnx-blocks": "blocks",
    "onnx-unrolled": "unrolled",
}
UNROUNDED = frozenset(["nir"])  # cannot put a stream on the network's grid
WEIGHTS = ("float32", "int8")
_MOST_STEPS = (
    64  # unrolled; loading takes 3 s there already, and grows faster than the number of steps
)
_OTHER_NAMES = {"ts": "torchscript", "jit": "torchscript", "onnx-step": "onnx"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Choices:
    """How the files are to be; made by `choices`, which checks that they go together.

    Attributes:
        target: key of `revedge.export.targets.TARGETS`.
        opset: of ONNX files.
        batch: of ONNX files; None is a free batch.
        steps: of unrolled graphs; None takes the T of the training.
        weights: of ONNX files, one of `WEIGHTS`.
    """

    target: str = "ort"
    opset: int = 18
    batch: int | None = None
    steps: int | None = None
    weights: str = "float32"


def choices(
    formats: Sequence[str],
    *,
    target: str | None = None,
    opset: int | None = None,
    batch: int | str | None = None,
    steps: int | None = None,
    weights: str | None = None,
    numerics: str = "float",
) -> Choices:
    """Return the choices, defaults filled in by the target.

    Args:
        formats: that will be written with them.
        target: name of a preset; default: "ort".
        opset: 13 to 23; default: the target's.
        batch: a number, or "dynamic"; default: the target's.
        steps: of unrolled graphs, 1 to 64.
        weights: one of `WEIGHTS`; default: "float32".
        numerics: of the files, "float" or "exact".

    All but ``numerics`` are of ONNX files, ``steps`` of unrolled ones; given for others they are refused.

    Raises:
        UsageError: a name that is not known, or choices that do not go together; says what does.
    """
    check_numerics(formats, numerics)
    given = {"--target": target, "--opset": opset, "--batch": batch, "--weights": weights}
    _check_read(formats, {**given, "--steps": steps})
    target, weights = target or "ort", weights or "float32"
    preset = target_named(target)
    for name in formats:
        _check_graph(name, target, preset)
    if opset is None:
        opset = (preset.int8_opset if weights == "int8" else None) or preset.opset
    if opset not in OPSETS:
        raise UsageError(
            f"opset {opset} cannot be written; choose {OPSETS.start} to {OPSETS.stop - 1}"
        )
    if opset > preset.newest_opset:
        raise UsageError(
            f"opset {opset} is newer than what {target} reads ({preset.title}); use {preset.newest_opset} or older"
        )
    if steps is not None and not 1 <= steps <= _MOST_STEPS:
        raise UsageError(f"{steps} unrolled steps; use 1 to {_MOST_STEPS}, or --format onnx-scan")
    if weights not in WEIGHTS:
        raise UsageError(f"weights {weights!r} are not known; choose from {', '.join(WEIGHTS)}")
    if weights == "int8" and not preset.int8:
        able = [name for name, one in TARGETS.items() if one.int8]
        raise UsageError(
            f"--weights int8 is not for {target} ({preset.title}); use --target {' or '.join(able)}, or float32"
        )
    return Choices(
        target=target,
        opset=opset,
        batch=_batch(batch, target, preset),
        steps=steps,
        weights=weights,
    )


def check_numerics(formats: Sequence[str], numerics: str) -> None:
    """Raise UsageError if a format cannot hold ``numerics``."""
    unable = [name for name in formats if name in UNROUNDED]
    if numerics == "exact" and unable:
        raise UsageError(
            f"--format {unable[0]} has no rounding, so no exact numerics; leave it out, or use --numerics float"
        )


def check_format(name: str) -> None:
    """Raise UsageError, with the closest name, unless ``name`` is a format."""
    if name in FORMATS:
        return
    close = difflib.get_close_matches(name, [*FORMATS, *_OTHER_NAMES], n=1, cutoff=0.4)
    hint = _OTHER_NAMES.get(close[0], close[0]) if close else ""
    raise UsageError(
        f"format {name!r} is not known; "
        + (f"did you mean {hint}?" if hint else f"choose from {', '.join(FORMATS)}")
    )


def parse_formats(text: str) -> tuple[str, ...]:
    """Return the formats named in ``"torchscript,onnx"``.

    Raises:
        UsageError: one is not known; the closest is named.
    """
    names = tuple(dict.fromkeys(part.strip().lower() for part in text.split(",") if part.strip()))
    for name in names:
        check_format(name)
    if not names:
        raise UsageError(f"no format was named; choose from {', '.join(FORMATS)}")
    return names


def _check_read(formats: Sequence[str], given: dict[str, object]) -> None:
    """Raise UsageError for an option that no file of ``formats`` would show."""
    for option, value in given.items():
        readers = ["onnx-unrolled"] if option == "--steps" else list(GRAPH_OF)
        if value is not None and not set(readers) & set(formats):
            raise UsageError(
                f"{option} {value} is for --format {', '.join(readers)}, and {', '.join(formats)} was asked for; "
                "leave it out"
            )


def _check_graph(name: str, target: str, preset: Target) -> None:
    graph = GRAPH_OF.get(name)
    if graph is not None and graph not in preset.graphs:
        able = [other for other, kind in GRAPH_OF.items() if kind in preset.graphs]
        raise UsageError(
            f"--format {name} is not for {target} ({preset.title}); use {', '.join(able)}"
        )


def _batch(batch: int | str | None, target: str, preset: Target) -> int | None:
    if batch is None:
        return preset.batch
    if batch == "dynamic":
        if not preset.free_batch:
            fixed = [name for name, one in TARGETS.items() if one.free_batch]
            raise UsageError(
                f"{target} needs a fixed batch; name a number, or --target {' or '.join(fixed)}"
            )
        return None
    try:
        number = int(batch)
    except ValueError:
        number = 0
    if not 1 <= number <= 1 << 16:
        raise UsageError(f"--batch {batch} is neither a number from 1 to 65536 nor dynamic")
    return number
