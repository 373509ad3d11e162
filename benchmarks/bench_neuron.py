"""One LIF layer, forward and backward: the C kernel against the loop over time in PyTorch.

Run: python benchmarks/bench_neuron.py [--shape 8,16,64,32,32] [--threads 1,2] [--repeats 7]
Prints a table, and as its last line one JSON object. A speed is printed only if both ways gave the
same spikes and gradients in this very run.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from revedge.kernels import native_status, norm_neuron_backward_
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


def kernel(node: LIFNode, x: Tensor) -> Tensor:
    """Return the spikes by the operator."""
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
    result = {"shape": shape, "native": native_status()["loaded"], "rows": []}
    met = True
    print(f"LIF forward + backward, {shape}, median of {args.repeats}; {native_status()['path']}")
    print(
        f"{'threads':>7} {'loop_ms':>9} {'kernel_ms':>10} {'faster':>7} {'fused_backward_ms':>18}"
    )
    for threads in [int(count) for count in args.threads.split(",")]:
        torch.set_num_threads(threads)
        loops, kernels, fused = [], [], []
        for _ in range(args.repeats):
            s_loop, g_loop, loop_s = forward_backward(torch_loop, node, x, g)
            s, g_x, kernel_s = forward_backward(kernel, node, x, g)
            if not (torch.equal(s, s_loop) and torch.equal(g_x, g_loop)):
                print("the results differ: no speed is reported")
                return 1
            loops.append(loop_s)
            kernels.append(kernel_s)
            fused.append(fused_backward_s(x, g, node))
        row = {
            "threads": threads,
            "loop_s": statistics.median(loops),
            "kernel_s": statistics.median(kernels),
            "fused_norm_neuron_backward_s": statistics.median(fused),
        }
        row["speedup"] = row["loop_s"] / row["kernel_s"]
        met = met and row["speedup"] >= TARGET_SPEEDUP
        result["rows"].append(row)
        print(
            f"{threads:>7} {row['loop_s'] * 1e3:>9.1f} {row['kernel_s'] * 1e3:>10.1f} "
            f"{row['speedup']:>6.1f}x {row['fused_norm_neuron_backward_s'] * 1e3:>18.1f}"
        )
    result["input_bytes"] = x.untyped_storage().nbytes()
    result["kernel_kept_bytes"] = kept_bytes(kernel, node, x)
    result["loop_kept_bytes"] = kept_bytes(torch_loop, node, x)
    result["target_met"] = met and result["kernel_kept_bytes"] == result["input_bytes"]
    print(
        f"kept for the backward pass: kernel {result['kernel_kept_bytes'] / 2**20:.1f} MiB, "
        f"loop {result['loop_kept_bytes'] / 2**20:.1f} MiB, input "
        f"{result['input_bytes'] / 2**20:.1f} MiB"
    )
    print(json.dumps(result))
    return 0 if result["target_met"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
