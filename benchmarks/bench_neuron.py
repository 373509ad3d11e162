"""One LIF layer, forward and backward: the C kernel against the loop over time in PyTorch.

Run: python benchmarks/bench_neuron.py [--shape 8,16,64,32,32] [--threads 1,2] [--repeats 7]
Prints a table, and as its last line one JSON object. A speed is printed only if all ways gave the
same spikes and gradients in this very run.

Four ways: ``loop`` is plain autograd, step by step; ``module`` is LIFNode under autograd, which may
not write into the gradient it is given and so takes a new tensor for it; ``floats`` is the two
operators with float32 spikes, the gradient overwritten in place; ``kernel`` is what the engine
calls: spikes leave at one bit each, the gradient is overwritten in place.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from revedge.kernels import (
    native_status,
    neuron_backward_,
    neuron_forward,
    norm_neuron_backward_,
    unpack_bits,
)
from revedge.neurons import LIFNode, reset_net

TARGET_SPEEDUP = 8.0


def torch_loop(node: LIFNode, x: Tensor) -> Tensor:
    """Return the spikes by plain autograd, step by step, as SNN libraries without kernels do."""
    v = node.initial_state(x.shape[1:], x)
    spikes = []
    for x_t in x:
        s, v = node.step(x_t, v)
        spikes.append(s)
    return torch.stack(spikes)


def module(node: LIFNode, x: Tensor) -> Tensor:
    """Return the spikes by the module."""
    reset_net(node)
    return node(x)


def kept_bytes(way: Callable[[LIFNode, Tensor], Tensor], node: LIFNode, x: Tensor) -> int:
    """Return the bytes that autograd keeps between forward and backward, each storage once."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        spikes = way(node, x)
    del spikes
    return sum(kept.values())


def forward_backward(
    way: Callable[[LIFNode, Tensor], Tensor], node: LIFNode, x: Tensor, g: Tensor
) -> tuple[Tensor, Tensor, float]:
    """Return (spikes, gradient of x, seconds)."""
    x.grad = None
    start = time.perf_counter()
    s = way(node, x)
    s.backward(g)
    elapsed = time.perf_counter() - start
    assert x.grad is not None
    return s.detach(), x.grad, elapsed


def packed(node: LIFNode, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor, float]:
    """Return (spikes, gradient of x, seconds) by the operators, as the engine calls them."""
    x, g, p = x.detach(), g.clone(), node.params()
    start = time.perf_counter()
    bits, _ = neuron_forward(x, None, p, pack=True, state=False)
    g_x, _, _ = neuron_backward_(x, None, g, None, p, state=False)
    elapsed = time.perf_counter() - start
    return unpack_bits(bits, x.shape), g_x, elapsed


def operators(node: LIFNode, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor, float]:
    """Return (spikes, gradient of x, seconds) by the operators with float32 spikes."""
    x, g, p = x.detach(), g.clone(), node.params()
    start = time.perf_counter()
    s, _ = neuron_forward(x, None, p)
    g_x, _, _ = neuron_backward_(x, None, g, None, p)
    return s, g_x, time.perf_counter() - start


def fused_backward_s(x: Tensor, g: Tensor, node: LIFNode) -> float:
    """Return the seconds of the fused batch norm and neuron backward on the same shape."""
    channels = x.shape[2]
    ones, zeros = torch.ones(channels), torch.zeros(channels)
    g = g.clone()
    start = time.perf_counter()
    norm_neuron_backward_(x.detach(), g, zeros, ones, ones, zeros, node.params())
    return time.perf_counter() - start


def main() -> int:
    """Measure, print, and return 1 if the target is missed or the results differ."""
    parser = argparse.ArgumentParser(description="One LIF layer: C kernel against PyTorch loop.")
    parser.add_argument("--shape", default="8,16,64,32,32", help="T,B,C,H,W")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    shape = [int(size) for size in args.shape.split(",")]
    torch.manual_seed(0)
    x = torch.randn(shape).mul_(1.5).requires_grad_()
    g = torch.randn(shape)
    node = LIFNode()
    rows: list[dict[str, float]] = []
    met = True
    print(f"LIF forward + backward, {shape}, median of {args.repeats}; {native_status()['path']}")
    print("threads  loop_ms  module_ms  floats_ms  kernel_ms  faster  fused_norm_backward_ms")
    for threads in [int(count) for count in args.threads.split(",")]:
        torch.set_num_threads(threads)
        times: dict[str, list[float]] = {
            way: [] for way in ("loop", "module", "floats", "kernel", "fused")
        }
        for _ in range(args.repeats):
            s_loop, g_loop, loop_s = forward_backward(torch_loop, node, x, g)
            times["loop"].append(loop_s)
            for name, (s, g_x, elapsed) in (
                ("module", forward_backward(module, node, x, g)),
                ("floats", operators(node, x, g)),
                ("kernel", packed(node, x, g)),
            ):
                if not (torch.equal(s, s_loop) and torch.equal(g_x, g_loop)):
                    print(f"the results of loop and {name} differ: no speed is reported")
                    return 1
                times[name].append(elapsed)
            times["fused"].append(fused_backward_s(x, g, node))
        median = {name: statistics.median(values) for name, values in times.items()}
        speedup = median["loop"] / median["kernel"]
        met = met and speedup >= TARGET_SPEEDUP
        rows.append(
            {"threads": threads, "speedup": speedup}
            | {f"{name}_s": value for name, value in median.items()}
        )
        print(
            f"{threads:>7} {median['loop'] * 1e3:>8.1f} {median['module'] * 1e3:>10.1f} "
            f"{median['floats'] * 1e3:>10.1f} {median['kernel'] * 1e3:>10.1f} {speedup:>6.1f}x "
            f"{median['fused'] * 1e3:>22.1f}"
        )
    input_bytes = x.untyped_storage().nbytes()
    kept = {way.__name__: kept_bytes(way, node, x) for way in (module, torch_loop)}
    result = {
        "shape": shape,
        "native": native_status()["loaded"],
        "rows": rows,
        "input_bytes": input_bytes,
        "kernel_kept_bytes": kept["module"],
        "loop_kept_bytes": kept["torch_loop"],
        "target_met": met and kept["module"] == input_bytes,
    }
    print(
        f"kept for the backward pass: kernel {kept['module'] / 2**20:.1f} MiB, "
        f"loop {kept['torch_loop'] / 2**20:.1f} MiB, input {input_bytes / 2**20:.1f} MiB"
    )
    print(json.dumps(result))
    return 0 if result["target_met"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
