"""What bench_reversible.py measures, one job in a fresh process: a JSON object in, a JSON object out.

All ways of a job take turns in this one process, so that their ratio holds on a noisy machine. Times are medians of CPU
seconds of the process, summed over its threads. Nothing is timed before the gradients were compared.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from revedge import kernels, models
from revedge.kernels import ReversibleParams, reference
from revedge.kernels.reference.reversible import grouped
from revedge.neurons import BACKWARDS, LIFNode, ReversibleNode, reset_net
from revedge.neurons.conventional import conventional_backward_printed, groups_step

DIM = 2  # [T, B, C, H, W]: groups over channels, as the models have them
# Forward returns (Y, what the backward takes); the backward returns the gradient of X.
Way = tuple[Callable[[], tuple[Tensor, Any]], Callable[[Tensor, Any], Tensor]]


def by_autograd(x: Tensor, rp: ReversibleParams) -> Tensor:
    """Return Y step by step in plain PyTorch, as the faster of our two definitions has it."""
    x_TPGL = grouped(x, rp.groups, DIM)
    v = [torch.zeros_like(x_TPGL[0, :, 0]) for _ in range(rp.groups)]
    steps = []
    for x_t in x_TPGL:
        y, v = groups_step(list(x_t.unbind(1)), v, rp)
        steps.append(torch.stack(y, 1))
    return torch.stack(steps).view(x.shape)


def ways(x: Tensor, g: Tensor, rp: ReversibleParams) -> dict[str, Way]:
    """Every way, by name: the three of ReversibleNode under autograd, and what they are held against."""
    leaf = x.clone().requires_grad_()

    def of_node(backward: str) -> Way:
        node = ReversibleNode(dim=DIM, backward=backward)

        def forward() -> tuple[Tensor, Any]:
            reset_net(node)
            return node(leaf), None

        return forward, lambda y, _: torch.autograd.grad(y, leaf, g)[0]

    def keep_v() -> tuple[Tensor, Any]:
        return kernels.reversible_forward(x, rp, DIM, return_state=True)

    def keep_m() -> tuple[Tensor, Any]:
        y, _, m = kernels.reversible_forward_stored(x, rp, DIM)
        return y, m

    def in_c(y: Tensor, _: Any) -> Tensor:
        rebuilt = kernels.reversible_reconstruct(y, rp, DIM)
        again, _, m = kernels.reversible_forward_stored(rebuilt, rp, DIM)
        return kernels.reversible_backward(again, g, rp, DIM, m)

    return {
        **{name: of_node(name) for name in BACKWARDS},
        "conventional, printed inverse": (
            keep_v,
            lambda y, v: conventional_backward_printed(y, v, g, rp, DIM)[1],
        ),
        "conventional, all in C": (keep_v, in_c),
        "direct, all in PyTorch": (
            keep_v,
            lambda y, _: reference.reversible_backward(y, g, rp, DIM),
        ),
        "stored, by autograd": (
            lambda: (by_autograd(leaf, rp), None),
            lambda y, _: torch.autograd.grad(y, leaf, g)[0],
        ),
        "stored, all in PyTorch": (
            keep_m,
            lambda y, m: reference.reversible_stored_backward(y, m, g, rp, DIM),
        ),
    }


def neuron(job: dict[str, Any]) -> dict[str, Any]:
    """One neuron of ``shape``: forward and backward seconds of every way."""
    torch.manual_seed(0)
    rp = ReversibleParams()
    x, g = kernels.grid_round(torch.randn(job["shape"])), torch.randn(job["shape"])
    found = ways(x, g, rp)
    gradients = {name: back(*forward()) for name, (forward, back) in found.items()}
    scale = float(gradients["direct"].abs().max())
    off = {
        name: float((found_g - gradients["direct"]).abs().max()) / scale
        for name, found_g in gradients.items()
    }
    wrong = [name for name, error in off.items() if error > 1e-5 and "printed" not in name]
    if wrong or not torch.equal(gradients["direct"], gradients["stored"]):
        raise SystemExit(f"gradients differ, nothing is timed: {off}")
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in found}
    for _ in range(job["repeats"]):
        for name, (forward, back) in found.items():
            calls, spent = 0, [0.0, 0.0]
            while calls == 0 or (sum(spent) < 0.005 and calls < 100):
                start = time.process_time()
                y, kept = forward()
                between = time.process_time()
                back(y, kept)
                spent[0] += between - start
                spent[1] += time.process_time() - between
                calls += 1
            times[name].append((spent[0] / calls, spent[1] / calls))
    return {
        "off": off,
        "forward_s": {n: statistics.median(f for f, _ in t) for n, t in times.items()},
        "backward_s": {n: statistics.median(b for _, b in t) for n, t in times.items()},
    }


class Stopwatch:
    """Adds up what the neurons of a net take, by standing in front of the two methods that the engine calls."""

    def __init__(self, net: torch.nn.Module) -> None:
        self.forward_s = self.backward_s = 0.0
        for node in net.modules():
            if isinstance(node, ReversibleNode):
                node.sequence = self._timed(node.sequence, "forward_s")
                timed = self._timed(node.sequence_backward_, "backward_s")
                node.sequence_backward_ = timed

    def _timed(self, method: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            start = time.process_time()
            result = method(*args)
            setattr(self, name, getattr(self, name) + time.process_time() - start)
            return result

        return call


def vgg(job: dict[str, Any]) -> dict[str, Any]:
    """A training step of a VGG under the three backwards: seconds of both halves, and of the neurons in them."""
    net_of: dict[str, torch.nn.Module] = {}
    for backward in BACKWARDS:
        torch.manual_seed(0)
        net_of[backward] = models.create(
            job["net"],
            in_shape=(3, 32, 32),
            num_classes=10,
            timesteps=job["timesteps"],
            static=True,
            neuron="reversible",
            strategy="store" if backward == "stored" else "invert",
        ).train()
        for node in net_of[backward].modules():
            if isinstance(node, ReversibleNode):
                node.backward = backward
    watch_of = {name: Stopwatch(net) for name, net in net_of.items()}
    x = torch.randn(job["batch"], 3, 32, 32)
    labels = torch.arange(job["batch"]) % 10
    times: dict[str, list[list[float]]] = {name: [] for name in net_of}
    first: dict[str, list[Tensor]] = {}
    for repeat in range(job["repeats"] + 1):
        for name, net in net_of.items():
            net.zero_grad(set_to_none=True)
            watch = watch_of[name]
            watch.forward_s = watch.backward_s = 0.0
            start = time.process_time()
            loss = F.cross_entropy(net(x), labels)
            between = time.process_time()
            loss.backward()
            end = time.process_time()
            if repeat:  # the first one warms up
                spent = [between - start, end - between, watch.forward_s, watch.backward_s]
                times[name].append(spent)
            else:
                first[name] = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    if not all(torch.equal(a, b) for a, b in zip(first["direct"], first["stored"], strict=True)):
        raise SystemExit("direct and stored differ, nothing is reported")
    off = [
        float((a - b).norm() / b.norm().clamp_min(1e-12))
        for a, b in zip(first["conventional"], first["direct"], strict=True)
    ]
    keys = ("forward_s", "backward_s", "neurons_forward_s", "neurons_backward_s")
    return {
        "conventional_off": max(off),
        **{
            key: {name: statistics.median(t[i] for t in rows) for name, rows in times.items()}
            for i, key in enumerate(keys)
        },
    }


def kept_bytes(forward: Callable[[], Tensor]) -> int:
    """Return what autograd keeps between forward and backward besides the output, each storage once."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = forward()
    kept.pop(y.untyped_storage().data_ptr(), None)
    return sum(kept.values())


def lif_by_autograd(x: Tensor) -> Tensor:
    """Return the spikes of an ordinary LIF step by step in plain PyTorch."""
    node, spikes = LIFNode(), []
    v = node.initial_state(x.shape[1:], x)
    for x_t in x:
        s, v = node.step(x_t, v)
        spikes.append(s)
    return torch.stack(spikes)


def neuron_shapes(net: models.SpikingNet) -> list[tuple[int, ...]]:
    """Return the shape of every neuron of ``net``, without time and batch."""
    return [spec.shape for spec in net.state_spec()]


def memory(job: dict[str, Any]) -> dict[str, Any]:
    """Bytes per sample that the neurons of a VGG keep besides their output, which the next layer keeps in any case."""
    timesteps, rp = job["timesteps"], ReversibleParams()
    sizes = {"in_shape": (3, 32, 32), "num_classes": 10, "timesteps": timesteps}
    net = models.create(job["net"], neuron="reversible", **sizes)
    cases: dict[str, Callable[[Tensor], Tensor]] = {
        **{name: ReversibleNode(dim=DIM, backward=name) for name in BACKWARDS},
        "plain autograd": lambda x: by_autograd(x, rp),
        "LIF, plain autograd": lif_by_autograd,
    }
    totals = dict.fromkeys(cases, 0)
    neurons = 0
    for shape in neuron_shapes(net):
        x = torch.randn(timesteps, 1, *shape, requires_grad=True)
        neurons += x[0].numel()
        for name, forward in cases.items():
            totals[name] += kept_bytes(lambda forward=forward, x=x: forward(x))
            if isinstance(forward, ReversibleNode):
                reset_net(forward)
    return {
        "neurons_per_sample": neurons,
        "output_bytes_per_sample": 4 * neurons * timesteps,
        "kept_bytes_per_sample": totals,
    }


def inverse(job: dict[str, Any]) -> dict[str, Any]:
    """How wrong the printed inverse is after T steps, against the reconstruction forward in time."""
    torch.manual_seed(0)
    rp = ReversibleParams()
    x = kernels.grid_round(torch.randn(job["timesteps"], job["width"]))
    g = torch.randn_like(x)
    y, v_T = kernels.reversible_forward(x, rp, return_state=True)
    printed, v_0, smallest = kernels.reversible_inverse_printed(y, v_T, rp)
    again = kernels.reversible_reconstruct(y, rp)
    exact = kernels.reversible_backward(y, g, rp)
    _, of_printed = conventional_backward_printed(y, v_T, g, rp, -1)
    wrong = (printed - x).abs() > 0.5
    # V_0 is known to be 0, so what comes back is the error; V_T came in with half a unit in the last place.
    growth = v_0.abs() / (v_T.abs() * 2.0**-24).clamp_min(1e-30)
    return {
        "inputs": x.numel(),
        "wrong_by_a_spike": int(wrong.sum()),
        "chains_hit": float(wrong.any(0).float().mean()),
        "smallest_denominator": smallest,
        "v0_error_median": float(v_0.abs().median()),
        "v0_error_largest": float(v_0.abs().max()),
        "growth_median": float(growth.median()),
        "forward_time_wrong": int((again != x).sum()),
        "gradient_off": float((of_printed - exact).norm() / exact.norm()),
    }


def main() -> None:
    """Run the job of the first argument."""
    job = json.loads(sys.argv[1])
    torch.set_num_threads(job["threads"])
    jobs = {"neuron": neuron, "vgg": vgg, "memory": memory, "inverse": inverse}
    print(json.dumps(jobs[job["what"]](job)))


if __name__ == "__main__":
    main()
