"""In what convolutions and linear layers compute; everything else of a training is float32. Free of torch.

bfloat16 is torch's autocast around the forward pass (`revedge.engine.autocast`). Evaluation, finish and every exported
file compute in float32, so the accuracy that is told is that of the network which is kept.
"""

import platform
from pathlib import Path

from revedge.errors import UsageError

PRECISIONS = ("float32", "bfloat16")
AUTO = "auto"
# The first compute capability that has bfloat16 (CUDA C++ Programming Guide, "Features and Technical Specifications").
LEAST_CAPABILITY = (8, 0)
# What torch asks before it gives bfloat16 to oneDNN.
_X86_FLAGS = {"avx512bw", "avx512vl", "avx512dq"}


def check_precision(wanted: str | None) -> None:
    """Raise unless this can be asked for.

    Raises:
        UsageError: there is no such precision, or it cannot be trained in.
    """
    if wanted in (None, AUTO, *PRECISIONS):
        return
    if wanted in ("float16", "fp16", "half"):
        raise UsageError(
            f"--precision {wanted}: gradients below 6e-8 become 0 in float16, so it needs loss scaling, which revedge "
            "does not do; take bfloat16 or float32"
        )
    raise UsageError(
        f"--precision {wanted!r} is not known; choose one of {', '.join((*PRECISIONS, AUTO))}"
    )


def cpu_lacks_bfloat16(root: Path = Path("/")) -> str | None:
    """Return why convolutions are not computed in bfloat16 on this machine's CPU; None where they are.

    Torch gives them to oneDNN on x86 with AVX-512 and on Arm with BF16, and unfolds them slowly anywhere else.

    Args:
        root: where /proc is looked for.
    """
    flags = set[str]()
    try:
        text = (root / "proc/cpuinfo").read_text("utf-8", errors="replace")
    except OSError:
        text = ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            flags |= set(value.split())
    arm = platform.machine() == "aarch64"
    if ("bf16" in flags) if arm else (flags >= _X86_FLAGS):
        return None
    return f"this CPU has no {'BF16' if arm else 'AVX-512'}, which bfloat16 needs"


def require_here(precision: str | None) -> None:
    """Raise unless the CPU of this machine trains in ``precision``.

    Raises:
        UsageError: it would be computed in bfloat16, and slowly.
    """
    lacks = cpu_lacks_bfloat16() if precision == "bfloat16" else None
    if lacks:
        raise UsageError(f"--precision bfloat16: {lacks}; take --precision float32")
