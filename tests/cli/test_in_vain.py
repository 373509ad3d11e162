"""Options that would change nothing are refused, by every command alike."""

from typing import Any

import pytest

from revedge.cli.bench_rows import strategy_options
from revedge.cli.step_child import spawn
from revedge.errors import UsageError

SMALL = {"in_shape": (2, 8, 8), "num_classes": 4, "timesteps": 4, "width": 4}
SHAPE = ("--in-shape", "2,8,8", "--timesteps", "4", "--batch", "2")


def step(model: str, strategy: str, **options: Any) -> dict[str, Any]:
    """One training step in a process of its own, as `bench` and `verify` measure it."""
    net = {"name": model, **SMALL}
    return spawn(
        {"model": net, "strategy": strategy, "batch": 2, "threads": 1, "repeats": 1, **options}
    )


@pytest.mark.parametrize(
    ("model", "strategy", "options", "why"),
    [
        ("vgg5", "reverse", {"span_count": 4}, "nothing in this net can be cut over time"),
        ("ms-resnet6", "reverse", {"span_count": 4}, "one chunk of a convolution, 2.0 MiB"),
        ("ms-resnet6", "invert", {}, "and this net has none; it would be keep-conv"),
    ],
)
def test_a_step_is_not_measured_in_vain(model, strategy, options, why):
    """Spans that cut nothing, because of the net or of its chunks, and a strategy of neurons that are not there."""
    with pytest.raises(UsageError, match=why):
        step(model, strategy, **options)


def test_what_is_of_use_is_measured():
    """The same net in smaller chunks; strategies beside it that keep what spans make again, as `verify` has them."""
    for strategy in ("reverse", "store"):
        row = step("ms-resnet6", strategy, span_count=4, chunk_bytes=1)
        assert row["strategy"] == strategy
        assert row["cpu_s"] > 0


def test_options_that_change_nothing_under_a_strategy():
    """Of `bench`: spans where their tensors are kept, anything without the engine."""
    with pytest.raises(UsageError, match="keep-conv keeps what spans would make again"):
        strategy_options("keep-conv+spans=4")
    for option in ("slabs=1MiB", "chunks=1MiB"):
        with pytest.raises(UsageError, match=f"plain goes without the engine; leave .{option} out"):
            strategy_options(f"plain+{option}")
    assert strategy_options("store+slabs=1MiB")["slab_bytes"] == 1 << 20


@pytest.mark.parametrize(
    "words",
    [
        ("verify", "--model", "vgg5", "--spans", "4", *SHAPE),
        ("plan", "--model", "vgg5", "--spans", "4", *SHAPE, "--classes", "4", "--no-times", "--budget", "2GiB"),
    ],
)  # fmt: skip
def test_verify_and_plan_say_so(words, revedge_command):
    """Exit code 2, and one line that says what to do instead, before anything is measured."""
    done = revedge_command(*words)
    assert done.returncode == 2
    assert done.stderr.count("error") == 1
    assert "leave" in done.stderr.splitlines()[-1]
    assert done.stdout == ""
