"""Are exact exports exact? Counts spikes that differ between runtimes, batches, threads and layouts; 20 million each.

    OMP_NUM_THREADS=1 python benchmarks/exact_numerics.py RUN [--spikes 20e6] [--float]
    OMP_NUM_THREADS=1 python benchmarks/exact_numerics.py --models resnet18,revsformer-2-384
    OMP_NUM_THREADS=1 python benchmarks/exact_numerics.py --models all --narrow --report FILE   (a quarter of an hour)

RUN is a run folder that holds a finish (revedge train --finish exact). Every row is compared, step by step and each
running on its own states, with eager PyTorch at one thread and batch 24: spikes that differ, and values of states and
logits whose bits differ. Graphs of sequences (Scan, blocks, unrolled) run the whole recording at once; of their states
the last are seen, in blocks. --sequences does these rows only, --without evaluator,blocks leaves out rows with one of
these words in their name. --float does the same with the float form, for comparison. --models takes members of the
registry ("all": every one) at full width instead, or with --narrow with the fewest channels there are, untrained and on
random frames, with as large a batch as gives that many spikes. --report writes a table of the members done so far.

Ends with 1 if an exact row differs.
"""

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from exact_sequences import ShownSequence, Stepped, Way
from export_nets import Frames, events, full_width, lively
from report import command_line, machine, markdown_table, write

from revedge import models
from revedge.cli.trained import load_network, open_frames, read_description
from revedge.errors import UsageError
from revedge.export.cells import WATCH
from revedge.export.exact_form import exact_form
from revedge.export.formats import Choices
from revedge.export.inference import inference_form
from revedge.export.manifest import Manifest
from revedge.export.onnx_file import write_onnx
from revedge.export.onnx_places import points_of
from revedge.export.onnx_probe import _show
from revedge.export.torchscript import compile_script
from revedge.export.writer import exact_manifest, manifest_of

BATCH, STEPS = 24, 16
Step = Callable[[Any, list[Any]], Stepped]  # x, states -> logits, states, spikes
SEQUENCES = {"scan": "onnx-scan", "blocks": "onnx-blocks", "unrolled": "onnx-unrolled"}


def eager(
    form: Any, dtype: torch.dtype = torch.float32, batch: int = BATCH, nhwc: bool = False
) -> Step:
    """The WATCH form in pieces of ``batch`` samples."""

    def piece(x: Any, states: list[Any]) -> tuple[Any, list[Any], list[Any]]:
        x_t, v = torch.from_numpy(x).to(dtype), [torch.from_numpy(s).to(dtype) for s in states]
        if nhwc:
            x_t = x_t.to(memory_format=torch.channels_last)
            v = [s.to(memory_format=torch.channels_last) if s.dim() == 4 else s for s in v]
        with torch.no_grad():
            logits, given = form(x_t, v)
        arrays = [g.float().contiguous().numpy() for g in given]
        return logits.float().numpy(), arrays[0::3], arrays[2::3]

    def step(x: Any, states: list[Any]) -> tuple[Any, list[Any], list[Any]]:
        found = [
            piece(x[i : i + batch].copy(), [s[i : i + batch].copy() for s in states])
            for i in range(0, len(x), batch)
        ]
        join = [np.concatenate([f[0] for f in found])]
        for part in (1, 2):
            join.append(
                [np.concatenate(group) for group in zip(*(f[part] for f in found), strict=True)]
            )
        return join[0], join[1], join[2]

    return step


def without_onednn(form: Any) -> Step:
    """Eager with oneDNN off: NNPACK's Winograd convolution where torch has it, else its own."""
    inner = eager(form)

    def step(x: Any, states: list[Any]) -> tuple[Any, list[Any], list[Any]]:
        with torch.backends.mkldnn.flags(enabled=False):
            return inner(x, states)

    return step


def threads(form: Any, count: int) -> Step:
    """Eager with ``count`` threads."""
    inner = eager(form)

    def step(x: Any, states: list[Any]) -> tuple[Any, list[Any], list[Any]]:
        torch.set_num_threads(count)
        try:
            return inner(x, states)
        finally:
            torch.set_num_threads(1)

    return step


def shown_model(model: Any, names: list[str]) -> tuple[Any, list[str]]:
    """A step graph with its spikes as outputs, and the names of all outputs."""
    spikes = [point.spikes for point in points_of(model)]
    _show(model, spikes)
    return model, ["logits", *names, *spikes]


def session_step(run: Any, inputs: list[str], outputs: list[str]) -> Step:
    """A step through onnxruntime or the reference evaluator."""

    def step(x: Any, states: list[Any]) -> tuple[Any, list[Any], list[Any]]:
        found = run(outputs, {"x": x, **dict(zip(inputs, states, strict=True))})
        count = 1 + len(states)
        return found[0], list(found[1:count]), list(found[count:])

    return step


def by_steps(step: Step, net: Any) -> Way:
    """A step as a way to run a recording."""

    def steps(x: Any) -> Iterator[Stepped]:
        states = [np.full((x.shape[1], *s.shape), s.init, np.float32) for s in net.state_spec()]
        for frame in x:
            logits, states, spikes = step(frame, states)
            yield logits, states, spikes

    return steps


def runtimes(model: Any) -> Iterator[tuple[str, Any]]:
    """By name, what runs an ONNX model: onnxruntime at three levels of optimization, and ONNX's own evaluator."""
    import onnxruntime as ort
    from onnx.reference import ReferenceEvaluator

    for name in ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_ALL"):
        options = ort.SessionOptions()
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, name)
        options.intra_op_num_threads = 1
        session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        yield f"onnxruntime, {name[4:].lower()}", session.run
    yield "ONNX reference evaluator", ReferenceEvaluator(model).run


def rows(
    net: Any, scale: float, numerics: str, folder: Path, *, steps: bool = True
) -> Iterator[tuple[str, Way]]:
    """Every way to run the network, made when it is asked for; without ``steps`` those of sequence graphs only."""
    if steps:
        for name, step in step_rows(net, scale, numerics, folder).items():
            yield name, by_steps(step, net)
    for graph, kind in SEQUENCES.items():
        if net.static and graph == "blocks":
            continue
        model, manifest = written_model(net, scale, numerics, folder, kind)
        shown = ShownSequence(model, manifest, net)
        for name, run in runtimes(shown.model):
            yield f"{graph}, {name}", shown.way(run)


def written_model(
    net: Any, scale: float, numerics: str, folder: Path, kind: str
) -> tuple[Any, Manifest]:
    """The ONNX file of a format, read again."""
    import onnx

    steps = STEPS if kind == "onnx-unrolled" and not net.static else None
    # ONNX's evaluator reads DequantizeLinear from opset 19 on.
    chosen = Choices(opset=19, weights="int8" if numerics == "exact" else "float32", steps=steps)
    described = Frames()
    described.scale = scale
    manifest, path = manifest_of(net, described, "", kind, chosen), folder / f"{kind}.onnx"
    form = inference_form(net)
    if numerics == "exact":
        exact = exact_form(net, scale)
        form, manifest = exact.net, exact_manifest(manifest, exact.certificate)
    write_onnx(form, manifest, path)
    return onnx.load(str(path)), manifest


def step_rows(net: Any, scale: float, numerics: str, folder: Path) -> dict[str, Step]:
    """Every way to run one time step."""

    def form(mode: int) -> Any:
        return (
            exact_form(net, scale, mode).net if numerics == "exact" else inference_form(net, mode)
        )

    watch = form(WATCH)
    found: dict[str, Step] = {
        "eager, batch 1": eager(watch, batch=1),
        "eager, batch 5": eager(watch, batch=5),
        "eager, 2 threads": threads(watch, 2),
        "eager, channels_last": eager(form(WATCH).to(memory_format=torch.channels_last), nhwc=True),
        "eager, float64": eager(form(WATCH).double(), torch.float64),
        "eager, oneDNN off": without_onednn(watch),
        "TorchScript, frozen": eager(compile_script(form(WATCH))),
    }
    model, manifest = written_model(net, scale, numerics, folder, "onnx")
    inputs = [state.name for state in manifest.states]
    model, outputs = shown_model(model, [state.next for state in manifest.states])
    for name, run in runtimes(model):
        found[name] = session_step(run, inputs, outputs)
    return found


def compare(reference: Way, other: Way, recordings: list[Any]) -> tuple[int, int, int]:
    """Return spikes compared, spikes that differ, and values of states and logits whose bits differ."""
    compared = flips = bits = 0
    for x in recordings:
        for ours, theirs in zip(reference(x), other(x), strict=True):
            for a, b in zip(ours[2], theirs[2], strict=True):
                compared += a.size
                flips += int(np.count_nonzero(a != b))
            pairs = [(ours[0], theirs[0])]
            pairs += zip(ours[1], theirs[1], strict=True) if theirs[1] else []
            bits += sum(int(np.count_nonzero(a != b)) for a, b in pairs)
    return compared, flips, bits


def of_run(run: Path, spikes: float, numerics: str) -> tuple[Any, float, list[Any]]:
    """The network of a run, the scale of its frames, and recordings of its test split."""
    folder = run / "exact" if numerics == "exact" else run
    net = load_network(folder, read_description(folder))
    frames = open_frames(run, read_description(run), None)
    per_recording = STEPS * BATCH * neurons(net)
    recordings: list[Any] = []
    while len(recordings) * per_recording < spikes:
        first = len(recordings) * BATCH
        raw, _ = frames.batch(
            np.take(frames.test_indices, range(first, first + BATCH), mode="wrap")
        )
        x = (raw[None] if net.static else raw).astype(np.float32) * np.float32(frames.scale)
        recordings.append(np.ascontiguousarray(x[np.arange(STEPS) % len(x)]))
    return net, frames.scale, recordings


def of_member(name: str, spikes: float, *, narrow: bool) -> tuple[Any, float, list[Any]]:
    """A member of the registry, and one random recording."""
    net = smallest(name) if narrow else full_width(name)
    batch = max(6, int(np.ceil(spikes / STEPS / neurons(net))))
    return net, 0.5, [events(STEPS, batch, 3, net.in_shape)]


def smallest(name: str) -> Any:
    """A member with the fewest channels that it takes; frames of 32 give many neurons for little work."""
    for side, width in itertools.product((32, 16, 8), (2, 8)):
        try:
            return lively(name, in_shape=(2, side, side), width=width)
        except UsageError:
            continue
    raise AssertionError(f"{name} takes none of these sizes")


def neurons(net: Any) -> int:
    """How many neurons fire or do not fire per sample and step."""
    return int(sum(np.prod(s.shape) for s in net.state_spec()))


def check(
    net: Any,
    scale: float,
    recordings: list[Any],
    numerics: str,
    *,
    steps: bool = True,
    without: Sequence[str] = (),
) -> dict[str, tuple[int, int, int]]:
    """Print one line per row; return what `compare` found, way by way, but those with one of these words."""
    form = exact_form(net, scale, WATCH).net if numerics == "exact" else inference_form(net, WATCH)
    found = {}
    with tempfile.TemporaryDirectory() as where:
        for name, way in rows(net, scale, numerics, Path(where), steps=steps):
            if any(word in name for word in without):
                continue
            began = time.monotonic()
            compared, flips, bits = compare(by_steps(eager(form), net), way, recordings)
            found[name] = compared, flips, bits
            print(
                f"{name:38s} {flips:8d} of {compared} spikes  {bits:8d} other values  {time.monotonic() - began:.0f} s",
                flush=True,
            )
    return found


def fired(net: Any, scale: float, recordings: list[Any]) -> float:
    """Share of the neurons that fire in a step, over the first recording."""
    step = eager(exact_form(net, scale, WATCH).net)
    states = [
        np.full((recordings[0].shape[1], *s.shape), s.init, np.float32) for s in net.state_spec()
    ]
    count = total = 0
    for frame in recordings[0]:
        _, states, spikes = step(frame, states)
        count += sum(int(s.sum()) for s in spikes)
        total += sum(s.size for s in spikes)
    return count / total


def main() -> int:
    """Check what was named; 1 if exact numerics are not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--models", default="", help="members of the registry, with commas")
    parser.add_argument("--narrow", action="store_true", help="smallest instead of full width")
    parser.add_argument("--spikes", type=float, default=20e6)
    parser.add_argument("--float", action="store_true")
    parser.add_argument("--without", default="", help="words in names of ways, with commas")
    parser.add_argument("--sequences", action="store_true", help="graphs of sequences only")
    parser.add_argument("--report", type=Path, help="write a table of the members there")
    args = parser.parse_args()
    numerics = "float" if args.float else "exact"
    torch.set_num_threads(1)
    without = tuple(filter(None, args.without.split(",")))
    lines, table, every = machine(("torch", "onnx", "onnxruntime")), [], []
    names = models.names() if args.models == "all" else args.models.split(",")
    for name in filter(None, names):
        print(name, flush=True)
        member = of_member(name, args.spikes, narrow=args.narrow)
        every.append(check(*member, numerics, steps=not args.sequences, without=without))
        shape, batch = member[0].in_shape, member[2][0].shape[1]
        table.append([name, f"{shape[0]}x{shape[1]}x{shape[2]}", batch, *_sums([every[-1]])])
        table[-1].insert(3, f"{100 * fired(*member):.0f} %")
        if args.report:  # after each, so that a run that is cut short has shown something
            width = "fewest channels" if args.narrow else "full width"
            about = f"Members of the registry, {width}, {numerics}, {STEPS} steps, {len(every[0])} ways each."
            rows_now = [*table, ["all", "", "", "", *_sums(every)]]
            text = [about, f"Ways: {'; '.join(every[0])}.", markdown_table(_HEADER, rows_now)]
            title = f"Exact numerics of {len(table)} models, {width}"
            write(args.report, title, command_line(), lines, text)
    if args.run is not None:
        member = of_run(args.run, args.spikes, numerics)
        every.append(check(*member, numerics, steps=not args.sequences, without=without))
    equal = not any(flips or bits for one in every for _, flips, bits in one.values())
    return 0 if equal or args.float else 1


_HEADER = (
    *("model", "input", "batch", "neurons that fire", "spikes compared in each way"),
    *("spikes that differ in any", "values that differ in any"),
)


def _sums(every: list[dict[str, tuple[int, int, int]]]) -> list[str]:
    """Of each way the compared spikes, of which the least; and over all ways what differs."""
    least = min(sum(one[way][0] for one in every) for way in every[0])
    differ = [sum(values[k] for one in every for values in one.values()) for k in (1, 2)]
    return [f"{value:,}" for value in (least, *differ)]


if __name__ == "__main__":
    sys.exit(main())
