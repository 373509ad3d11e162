"""Every operator on a CUDA GPU: first that it is right, then how long it takes against PyTorch.

Run: python benchmarks/bench_cuda.py [--shape 8,16,64,32,32] [--repeats 50] [--device 0]
Prints a table, and as its last line one JSON object. An operator whose result differs from the
reference on the CPU, by a bit where no sum runs over a channel, prints no time and makes the exit code 1.

``triton`` is the operator, ``reference`` the same in PyTorch, on the same GPU, which is the loop over
time. ``GB/s`` counts each input and output of the operator once: what the GPU's memory allows at best.
``extra MiB`` is what the operator allocated at its peak besides its results. The last row is a whole
LIF layer, forward and backward, against plain autograd.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from revedge.kernels import NeuronParams, ReversibleParams, norm_affine, reference, triton_status
from revedge.neurons import LIFNode

Results = tuple[Tensor, ...]


@dataclass(frozen=True)
class Case:
    """``triton`` and ``reference`` take the tensors of ``inputs``; ``changes`` of them are written."""

    name: str
    inputs: tuple[Tensor, ...]
    triton: Callable[..., Any]
    reference: Callable[..., Any]
    changes: tuple[int, ...] = ()
    sums: bool = False  # over a channel: equal to rounding only


def as_tuple(results: Any) -> Results:
    """Return the tensors among what an operator returned."""
    several = results if isinstance(results, (tuple, list)) else (results,)
    return tuple(one for one in several if isinstance(one, Tensor))


def run(call: Callable[..., Any], inputs: Sequence[Tensor], changes: tuple[int, ...]) -> Results:
    """Return the results and what was overwritten, with the inputs left as they were."""
    given = [one.clone() if i in changes else one for i, one in enumerate(inputs)]
    results = as_tuple(call(*given))
    return *results, *(given[i] for i in changes)


def wrong(case: Case, device: torch.device) -> str:
    """Return how the GPU's results differ from the reference's on the CPU, or "" if they do not."""
    expected = run(case.reference, case.inputs, case.changes)
    found = run(case.triton, [one.to(device) for one in case.inputs], case.changes)
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        a = a.cpu()
        if a.shape != b.shape:
            return f"result {i} has shape {tuple(a.shape)}, not {tuple(b.shape)}"
        if case.sums and a.numel():
            # Sums of float64 in another order move a float32 by one unit; the gradient of y, made of
            # two of them, by as much of its largest part. 16 units cover both.
            error = (a.double() - b.double()).abs().max() / b.double().abs().max().clamp_min(1e-30)
            if float(error) > 16 * 2.0**-23:
                return f"result {i} is off by {float(error):.1e} of its largest value"
        elif a.dtype == torch.float32:
            differing = int((a.view(torch.int32) != b.contiguous().view(torch.int32)).sum())
            if differing:
                return f"result {i}: {differing} of {a.numel()} values differ in a bit"
        elif not torch.equal(a, b):
            return f"result {i} differs"
    return ""


def milliseconds(call: Callable[[], Any], repeats: int) -> float:
    """Return the median time of ``call`` on the GPU, by events, after three calls to warm up."""
    for _ in range(3):
        call()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def extra_bytes(call: Callable[[], Any]) -> int:
    """Return the peak of what ``call`` allocates, less what it returns."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results = call()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()
    kept = torch.cuda.memory_allocated() - before
    del results
    return peak - before - kept


def cases(shape: Sequence[int]) -> list[Case]:
    """Return every operator on tensors of ``shape`` [T, B, C, ...]."""
    op = torch.ops.revedge
    p = NeuronParams(decay=0.5, gain=0.5, leak_x=1.0, leak_v=-1.0)
    plain, through = NeuronParams(decay=0.5, gain=0.5), NeuronParams(
        decay=0.5, gain=1.0, v_reset=None, detach_reset=False, surrogate="sigmoid", alpha=4.0
    )  # fmt: skip
    f, f_plain, f_through = p.as_floats(), plain.as_floats(), through.as_floats()
    rp = ReversibleParams()
    r = rp.as_floats()
    y, g, channels = torch.randn(shape) * 1.5, torch.randn(shape), shape[2]
    v0, flat = torch.randn(shape[1:]), y.flatten(0, 1)
    weight, bias = torch.rand(channels) + 0.5, torch.randn(channels) * 0.3
    mean, var = reference.channel_stats(flat)
    scale, shift, inv_std = norm_affine(mean, var, weight, bias, 1e-5)
    s = (y > 0.5).float()
    bits = reference.pack_bits(s)
    grid = torch.round(flat * 2**14) / 2**14
    y_rev, _, m_rev = reference.reversible_forward_stored(grid.reshape(y.shape), rp, 2)
    norm = (mean, inv_std, weight)
    half = channels // 2
    part = y[:, :, half:].contiguous()
    return [
        Case("neuron_forward", (y, v0), lambda x, v: op.neuron_forward(x, v, f, False, True),
             lambda x, v: reference.neuron_forward(x, v, p)),
        Case("neuron_forward, bits", (y,),
             lambda x: op.neuron_forward(x, None, f_plain, True, False),
             lambda x: reference.neuron_forward(x, None, plain, True, False)),
        Case("neuron_backward_", (y, g), lambda x, g: op.neuron_backward_(x, None, g, None, f_plain, False),
             lambda x, g: reference.neuron_backward_(x, None, g, None, plain, False), (1,)),
        Case("neuron_backward_, sigmoid, soft, through", (y, g),
             lambda x, g: op.neuron_backward_(x, None, g, None, f_through, True),
             lambda x, g: reference.neuron_backward_(x, None, g, None, through), (1,)),
        Case("neuron_backward, learned leak", (y, v0, g), lambda x, v, g: op.neuron_backward(x, v, g, None, f),
             lambda x, v, g: reference.neuron_backward(x, v, g, None, p)),
        Case("norm_neuron_forward, bits", (y, scale, shift),
             lambda *a: op.norm_neuron_forward(*a, None, f_plain, True, False),
             lambda *a: reference.norm_neuron_forward(*a, None, plain, True, False)),
        Case("norm_neuron_pack_, half the channels", (part, scale[half:], shift[half:], torch.zeros_like(bits)),
             lambda x, a, b, out: op.norm_neuron_pack_(x, a, b, f_plain, out, channels, half),
             lambda x, a, b, out: reference.norm_neuron_pack_(x, a, b, plain, out, channels, half), (3,)),
        Case("norm_neuron_backward_", (y, g, *norm, bias),
             lambda *a: op.norm_neuron_backward_(*a, f_plain, 0),
             lambda *a: reference.norm_neuron_backward_(*a, plain), (1,), sums=True),
        Case("channel_stats", (flat,), op.channel_stats, reference.channel_stats, sums=True),
        Case("norm_forward", (flat, scale, shift), op.norm_forward, reference.norm_forward),
        Case("norm_backward_", (flat, g.flatten(0, 1), *norm), lambda *a: op.norm_backward_(*a, 0),
             reference.norm_backward_, (1,), sums=True),
        Case("grid_add_", (grid, flat, scale, shift, torch.zeros_like(flat)),
             lambda x, y, a, b, out: op.grid_add_(x, y, a, b, 14, 1, out, 0),
             lambda x, y, a, b, out: reference.grid_add_(x, y, a, b, 14, 1, out), (4,)),
        Case("pack_bits", (s,), op.pack_bits, reference.pack_bits),
        Case("unpack_bits", (bits,), lambda b: op.unpack_bits(b, list(shape)),
             lambda b: reference.unpack_bits(b, list(shape))),
        Case("reversible_forward", (grid.reshape(y.shape),), lambda x: op.reversible_forward(x, r, 2),
             lambda x: reference.reversible_forward(x, rp, 2)),
        Case("reversible_reconstruct", (y_rev,), lambda y: op.reversible_reconstruct(y, r, 2),
             lambda y: reference.reversible_reconstruct(y, rp, 2)),
        Case("reversible_backward_", (y_rev, g), lambda y, g: op.reversible_backward_(y, g, r, 2),
             lambda y, g: reference.reversible_backward_(y, g, rp, 2), (1,)),
        Case("reversible_stored_backward", (y_rev, m_rev, g),
             lambda y, m, g: op.reversible_stored_backward(y, m, g, r, 2),
             lambda y, m, g: reference.reversible_stored_backward(y, m, g, rp, 2)),
    ]  # fmt: skip


def measure(case: Case, device: torch.device, repeats: int) -> dict[str, float]:
    """Return the times, the bytes moved at least, and the memory besides the results."""
    inputs = [one.to(device) for one in case.inputs]
    results = as_tuple(case.triton(*inputs))
    moved = [*inputs, *results, *(inputs[i] for i in case.changes)]
    return {
        "triton_ms": milliseconds(lambda: case.triton(*inputs), repeats),
        "reference_ms": milliseconds(lambda: case.reference(*inputs), max(3, repeats // 5)),
        "moved_bytes": sum(one.numel() * one.element_size() for one in moved),
        "extra_bytes": extra_bytes(lambda: case.triton(*inputs)),
        "reference_extra_bytes": extra_bytes(lambda: case.reference(*inputs)),
    }


def layer(shape: Sequence[int], device: torch.device, repeats: int) -> dict[str, float]:
    """Return the times of one LIF, forward and backward: the operators, and a loop under autograd."""
    node, x, g = (
        LIFNode(),
        torch.randn(shape, device=device) * 1.5,
        torch.randn(shape, device=device),
    )
    floats, op = node.params().as_floats(), torch.ops.revedge
    leaf = x.clone().requires_grad_()

    def loop() -> Results:
        v = node.initial_state(leaf.shape[1:], leaf)
        spikes = []
        for x_t in leaf:
            s, v = node.step(x_t, v)
            spikes.append(s)
        s = torch.stack(spikes)
        (g_x,) = torch.autograd.grad(s, leaf, g)
        return s.detach(), g_x

    def operators() -> Results:
        s, _ = op.neuron_forward(x, None, floats, False, False)
        return s, op.neuron_backward(x, None, g, None, floats)[0]

    for a, b in zip(operators(), loop(), strict=True):
        if not torch.equal(a, b):
            raise SystemExit("the LIF layer and its loop differ: no time is reported")
    return {
        "triton_ms": milliseconds(operators, repeats),
        "reference_ms": milliseconds(loop, max(3, repeats // 5)),
        "moved_bytes": 5 * x.numel() * 4,
        "extra_bytes": extra_bytes(operators),
        "reference_extra_bytes": extra_bytes(loop),
    }


def show(name: str, row: dict[str, float]) -> None:
    """Print one row of the table."""
    speed = row["reference_ms"] / row["triton_ms"]
    rate = row["moved_bytes"] / row["triton_ms"] / 1e6
    print(
        f"{name:<42}{row['triton_ms']:>11.3f}{row['reference_ms']:>14.3f}{speed:>9.1f}x{rate:>9.0f}"
        f"{row['extra_bytes'] / 2**20:>11.1f}{row['reference_extra_bytes'] / 2**20:>15.1f}"
    )


def main() -> int:
    """Check and measure; return 1 if anything is wrong, or if there is nothing to run on."""
    parser = argparse.ArgumentParser(description="Every operator in Triton against PyTorch.")
    parser.add_argument("--shape", default="8,16,64,32,32", help="T,B,C,H,W")
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--device", type=int, default=0)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench_cuda: torch sees no CUDA device; nothing was measured")
        return 0
    status = triton_status()
    if not status["loaded"]:
        print(f"bench_cuda: {status['reason']}")
        return 1
    device = torch.device("cuda", args.device)
    torch.cuda.set_device(device)
    torch.manual_seed(0)
    shape = [int(size) for size in args.shape.split(",")]
    print(
        f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, "
        f"triton {sys.modules['triton'].__version__}, {shape}, median of {args.repeats}"
    )
    print(
        f"{'operator':<42}{'triton ms':>11}{'reference ms':>14}{'faster':>10}{'GB/s':>9}"
        f"{'extra MiB':>11}{'ref. extra MiB':>15}"
    )
    rows: dict[str, Any] = {}
    failures = {}
    for case in cases(shape):
        problem = wrong(case, device)
        if problem:
            failures[case.name] = problem
            print(f"{case.name:<42}  WRONG: {problem}")
            continue
        rows[case.name] = measure(case, device, args.repeats)
        show(case.name, rows[case.name])
    rows["LIF layer"] = layer(shape, device, args.repeats)
    show("LIF layer, forward + backward", rows["LIF layer"])
    print(json.dumps({"shape": shape, "rows": rows, "failures": failures}))
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
