"""Runs in a child process of test_triton.py, in one of the ways ``interpreter``, ``cuda``, ``compile``.

Prints, as its last line, a JSON object: what failed by name ("" where nothing did), or ``skip``.
"""

import importlib
import json
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from kernel_checks import neuron_variants
from triton_checks import CHECKS
from triton_where import Where

from revedge import kernels
from revedge.kernels import NeuronParams, ReversibleParams

# What would round otherwise than the reference: fused, approximate, or flushed to zero.
FUSED = re.compile(r"\b(?:fma|mad)\.(?:rn\.)?(?:ftz\.)?f\d+")
APPROXIMATE = re.compile(r"\b(?:div|rcp|sqrt)\.(?:full|approx)\S*")
FLUSHED = re.compile(r"\b\w+(?:\.\w+)*\.ftz\.f32")
UNROUNDED = re.compile(r"\b(?:add|sub|mul)\.f(?:32|64)")  # without .rn the assembler may fuse


@triton.jit
def _count(out, n):
    total = tl.zeros([4], tl.int32)
    for i in range(n):
        total += i
    tl.store(out + tl.arange(0, 4), total)


def broken_interpreter() -> str | None:
    """Return why Triton's interpreter does not run at all, as old ones with a new numpy."""
    out = torch.zeros(4, dtype=torch.int32)
    try:
        _count[(1,)](out, 4)
    except Exception as error:
        return f"Triton {triton.__version__}'s interpreter does not run here: {error}"
    return None if out.tolist() == [6] * 4 else "Triton's interpreter cannot even count here"


def run_checks(where: Where) -> dict[str, str]:
    """Return for each check "" or its traceback. Memory that nobody wrote is NaN meanwhile."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    found = {}
    for name, check in CHECKS.items():
        torch.manual_seed(0)
        try:
            check(where)
            found[name] = ""
        except Exception:
            found[name] = traceback.format_exc()
    return found


def in_interpreter() -> dict[str, str]:
    """Call the Triton functions themselves with CPU tensors."""
    reason = broken_interpreter()
    if reason:
        return {"skip": reason}
    module = importlib.import_module("revedge.kernels.triton")
    launch = importlib.import_module("revedge.kernels.triton._launch")
    return run_checks(Where("cpu", lambda name: getattr(module, name), launch))


def on_cuda() -> dict[str, str]:
    """Call the registered operators with CUDA tensors; the dispatcher must choose Triton."""
    status = kernels.triton_status()
    if not status["loaded"]:
        return {"skip": status["reason"]}
    called: list[str] = []
    module = importlib.import_module("revedge.kernels.triton")

    def spied(name: str) -> Callable[..., Any]:
        real = getattr(module, name)

        def call(*args: Any) -> Any:
            called.append(name)
            return real(*args)

        return call

    for name in module.__all__:
        setattr(module, name, spied(name))
    launch = importlib.import_module("revedge.kernels.triton._launch")
    found = run_checks(Where("cuda", lambda name: getattr(torch.ops.revedge, name), launch))
    missing = sorted(set(module.__all__) - set(called))
    if missing:
        found["bits"] += f"the dispatcher never called {missing}"
    return found


class _NoDriver:
    """Stands for a GPU of compute capability 8.7 (Jetson Orin), for which kernels are compiled."""

    def get_current_target(self) -> Any:
        return importlib.import_module("triton.backends.compiler").GPUTarget("cuda", 87, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0


def compile_only() -> dict[str, str]:
    """Compile every kernel without a GPU, and look for instructions that round otherwise."""
    importlib.import_module("triton.runtime").driver.set_active(_NoDriver())
    module = importlib.import_module("revedge.kernels.triton")
    launch = importlib.import_module("revedge.kernels.triton._launch")
    assembly: dict[str, list[str]] = {}

    def instead(kernel: Any, programs: int, *args: object, **constants: object) -> None:
        compiled = kernel.warmup(*args, grid=(programs,), **constants, **launch.EXACT)
        name = f"{kernel.fn.__module__.rpartition('.')[2]}.{kernel.fn.__name__}"
        assembly.setdefault(name, []).append(compiled.asm["ptx"])

    for room in ("bits", "grid", "neuron", "norm", "reversible"):
        vars(importlib.import_module(f"revedge.kernels.triton.{room}"))["launch"] = instead
    call_everything(module)
    found = {name: _other_roundings("\n".join(texts)) for name, texts in assembly.items()}
    # The search finds what it looks for: the same kernel, fused.
    vars(launch)["EXACT"] = {"enable_fp_fusion": True}
    assembly.clear()
    module.norm_forward(torch.ones(2, 3, 5), torch.ones(3), torch.ones(3))
    (text,) = assembly["norm._scale"]
    found["control"] = "" if FUSED.search(text) else "no fused instruction is found where one is"
    return found


def _other_roundings(text: str) -> str:
    patterns = [FUSED, APPROXIMATE, UNROUNDED]
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) >= (3, 6):
        patterns.append(FLUSHED)  # older ones flush quotients below 1.2e-38
    return " ".join(sorted({match for pattern in patterns for match in pattern.findall(text)}))


def call_everything(module: Any) -> None:
    """Call every operator, for every constant that changes its code."""
    y, c = torch.randn(5, 2, 4, 3, 8), torch.ones(4)
    p = NeuronParams(decay=0.5, gain=0.5).as_floats()
    flat = y.flatten(0, 1)
    module.pack_bits(y)
    module.unpack_bits(torch.zeros(100, dtype=torch.uint8), [700])
    module.neuron_forward(y, y[0], p, False, True)
    module.norm_neuron_forward(y, c, c, None, p, True, False)
    odd, bits = y[..., :7].contiguous(), torch.zeros(132, dtype=torch.uint8)
    module.norm_neuron_pack_(odd, c, c, p, bits, 5, 1)
    for variant in neuron_variants():
        module.neuron_backward_(y, None, y, None, variant.as_floats(), False)
    module.norm_neuron_backward_(y, y, c, c, c, c, p, 0)
    for variant in neuron_variants():
        module.norm_neuron_span_backward_(y, c, c, y[0], y, y[0], variant.as_floats())
    module.channel_stats(flat)
    module.norm_forward(flat, c, c)
    for x in (flat, None):
        for scale in (c, c[:0]):
            module.grid_add_(x, flat, scale, scale, 14, 1, flat, 0)
    for surrogate in kernels.SURROGATES:
        for detach in (True, False):
            rp = ReversibleParams(groups=4, surrogate=surrogate, detach_reset=detach).as_floats()
            module.reversible_backward_(y, y, rp, 2)
    rp = ReversibleParams().as_floats()
    module.reversible_forward_stored(y, rp, 2)
    module.reversible_reconstruct(y, rp, 2)
    module.reversible_backward(y, y, rp, 2)
    module.reversible_stored_backward_(y, y, y, rp, 2)


def main() -> None:
    """Run the way that is named on the command line."""
    way = {"interpreter": in_interpreter, "cuda": on_cuda, "compile": compile_only}[sys.argv[1]]
    print(json.dumps(way()))
