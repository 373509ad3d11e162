"""Memory that a convolution takes beside its operands and results, against the planner's bound on it.

Run: python benchmarks/conv_workspace.py [--count 300] [--seed 0] [--precision bfloat16]
Draws shapes from a seeded generator and measures, by the arena that the training process uses, the largest live bytes
while a convolution, and its backward pass, run. Prints the worst shapes, and as its last line one JSON object; exit
code 1 if the real workspace was ever above the bound. Takes about a minute. Blocks below 64 KiB are not seen.
"""

import argparse
import ctypes
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from revedge import allocator, child
from revedge.planner.precision import PRECISIONS
from revedge.planner.tracer import BACKWARD, convolution_call

LARGEST_BYTES = 24 << 20  # of a tensor
UNSEEN_BYTES = 64 << 10  # per block
CHANNELS = (1, 2, 3, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256)


def peak_bytes(call: Callable[[], list[Tensor | None]]) -> int:
    """Return the largest live bytes above those before, without the results, of a second call."""
    call()
    ctypes.CDLL(None).revedge_arena_reset()
    before = allocator.arena_bytes()
    results = call()
    after = allocator.arena_bytes()
    assert before is not None
    assert after is not None
    own = sum(t.untyped_storage().nbytes() for t in results if t is not None)
    return after[2] - before[0] - own


def draw(rng: random.Random) -> dict[str, int]:
    """Return the sizes of a convolution whose tensors are not too large."""
    while True:
        found = {
            "n": rng.choice((1, 2, 3, 4, 8, 16, 32)),
            "c_in": rng.choice(CHANNELS),
            "c_out": rng.choice(CHANNELS[3:]),
            "side": rng.choice((2, 4, 8, 14, 16, 17, 28, 32, 34)),
            "kernel": rng.choice((1, 3, 3, 3, 5)),
            "stride": rng.choice((1, 1, 1, 2)),
        }
        widest = max(found["c_in"], found["c_out"])
        if found["n"] * found["side"] ** 2 * widest * 4 <= LARGEST_BYTES:
            return found


def compare(sizes: dict[str, int], dtype: torch.dtype) -> list[tuple[str, int, int]]:
    """Return (pass, measured bytes, bound) of one convolution."""
    n, c_in, c_out, side, kernel, stride = sizes.values()
    half = kernel // 2
    x = torch.rand(n, c_in, side, side).to(dtype)
    weight = torch.rand(c_out, c_in, kernel, kernel).to(dtype)
    y = torch.conv2d(x, weight, None, stride, half)
    found = []

    def forward() -> list[Tensor | None]:
        return [torch.conv2d(x, weight, None, stride, half)]

    args: tuple[Any, ...] = (x, weight, None, [stride] * 2, [half] * 2, [1, 1], False, [0, 0], 1)
    bound = convolution_call("aten::convolution", args, [y]).workspace_bytes(1)
    found.append(("forward", peak_bytes(forward), bound))
    for mask in ([True, False], [False, True], [True, True]):
        back = (y, *args, [*mask, False])

        def backward(back: tuple[Any, ...] = back) -> list[Tensor | None]:
            return list(torch.ops.aten.convolution_backward(*back))

        bound = convolution_call(BACKWARD, back, []).workspace_bytes(1)
        found.append((f"backward {mask}", peak_bytes(backward), bound))
    return found


def main() -> int:
    """Measure in a process with the arena, and compare."""
    parser = argparse.ArgumentParser(description="Hidden workspace of convolutions.")
    parser.add_argument("--count", type=int, default=300, help="shapes (300)")
    parser.add_argument("--seed", type=int, default=0, help="of the list (0)")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="(float32)")
    args = parser.parse_args()
    if allocator.arena_bytes() is None:
        arena = allocator.preload()
        if not arena or "LD_PRELOAD" in os.environ:
            print("the arena is not there; it needs a C compiler at installation", file=sys.stderr)
            return 1
        return subprocess.run(
            [sys.executable, *sys.argv], env=child.environment(**arena), check=False
        ).returncode
    torch.set_num_threads(1)
    dtype = getattr(torch, args.precision)
    rng, rows = random.Random(args.seed), list[tuple[int, str, dict[str, int], int, int]]()
    for _ in range(args.count):
        sizes = draw(rng)
        rows += [
            (bound - real, name, sizes, real, bound) for name, real, bound in compare(sizes, dtype)
        ]
    rows.sort(key=lambda row: row[0])
    for margin, name, sizes, real, bound in rows[:5]:
        print(f"{name} {sizes}: {real} bytes, bound {bound}, {margin} left")
    below = sum(margin < -3 * UNSEEN_BYTES for margin, *_ in rows)
    measured, bounds = sum(row[3] for row in rows), sum(row[4] for row in rows)
    print(json.dumps({"passes": len(rows), "above_bound": below, "bound_share": bounds / measured}))
    return 1 if below else 0


if __name__ == "__main__":
    sys.exit(main())
