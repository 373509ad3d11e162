"""Trainings in bfloat16: what is traced is what autocast does, and predictions hold."""

import dataclasses
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from planner_settings import LARGEST_EXCESS, SETTINGS, plan_for
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from revedge.errors import PlanFormatError, UsageError
from revedge.planner import precision
from revedge.planner.plan import Plan
from revedge.planner.setting import Setting
from revedge.planner.step import Rehearsal
from revedge.planner.trace_client import TraceClient
from revedge.planner.verify import verify

needs_bfloat16 = pytest.mark.skipif(
    precision.cpu_lacks_bfloat16() is not None, reason=str(precision.cpu_lacks_bfloat16())
)
LOWERED = ("aten::_to_copy", "aten::convolution", "aten::convolution_backward",
           "aten::mm", "aten::addmm", "aten::bmm")  # fmt: skip

Call = tuple[str, list[tuple[tuple[int, ...], torch.dtype]]]


class Seen(TorchDispatchMode):
    """Notes where types are changed, and what may compute in less: name, shapes and types."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Note one operator."""
        name = func._schema.name
        if name == "aten::_local_scalar_dense" and args[0].is_meta:
            return 1  # as in a trace: it has no value
        out = func(*args, **(kwargs or {}))
        if name in LOWERED:
            made = out if isinstance(out, tuple | list) else [out]
            tensors = [t for t in (*args, *made) if isinstance(t, Tensor)]
            self.calls.append((name, [(tuple(t.shape), t.dtype) for t in tensors]))
        return out


@pytest.mark.parametrize("place", range(len(SETTINGS)), ids=lambda n: SETTINGS[n].model)
def test_a_trace_casts_where_autocast_does(place: int) -> None:
    """On the meta device the same operators see the same shapes and types as on the CPU under torch's autocast."""
    setting = dataclasses.replace(SETTINGS[place], precision="bfloat16", threads=1)
    seen = {}
    for device in ("cpu", "meta"):
        rehearsal = Rehearsal(setting, device)
        with Seen() as seen[device]:
            rehearsal.train_step()
            rehearsal.evaluate()
    computed = [call for call in seen["cpu"].calls if call[0] != "aten::_to_copy"]
    assert any(types[0][1] == torch.bfloat16 for _, types in computed)
    assert _ordered(seen["meta"].calls) == _ordered(seen["cpu"].calls)


def _ordered(calls: list[Call]) -> list[list[Call]]:
    """Each operator that computes, behind the casts before it: in one order, because torch's compiler chose theirs."""
    found: list[list[Call]] = [[]]
    for call in calls:
        if call[0] != "aten::_to_copy":
            found[-1] = [*sorted(found[-1], key=repr), call]
            found.append([])
        else:
            found[-1].append(call)
    return found


@needs_bfloat16
@pytest.mark.parametrize("place", [0, 2, 3, 5], ids=lambda n: SETTINGS[n].model)
def test_never_under_and_close(place: int) -> None:
    """Two real steps in bfloat16 in a fresh process take at most what was predicted, and not much less."""
    setting = dataclasses.replace(SETTINGS[place], precision="bfloat16")
    with TraceClient() as client:
        plan = plan_for(setting, client)
    found = verify(plan)
    excess = (plan.predicted_peak_bytes - found.measured_peak_bytes) / found.measured_peak_bytes
    print(f"{setting.model} {setting.strategy}: predicted {excess:+.2%} above measured")
    assert found.holds, found.problem
    assert 0 <= excess <= LARGEST_EXCESS


def test_a_module_that_autocast_may_change_is_not_guessed() -> None:
    """A layer whose casts are not known is refused in planning, and named."""
    conv = torch.nn.Conv1d(2, 2, 3, device="meta")
    rehearsal = Rehearsal(Setting(**_small(precision="bfloat16")), "meta")
    unit = next(
        m for m in rehearsal.net.modules() if isinstance(getattr(m, "op", None), torch.nn.Conv2d)
    )
    with (
        mock.patch.object(unit, "op", conv),
        pytest.raises(UsageError, match="Conv1d in a precision"),
    ):
        rehearsal.train_step()


def _small(**changes: object) -> dict[str, Any]:
    return {"model": "vgg5", "in_shape": (2, 16, 16), "num_classes": 3, "timesteps": 2, "batch_size": 2,
            "micro_batch_size": 2, "strategy": "keep-conv", **changes}  # fmt: skip


def test_a_plan_says_its_precision_only_below_float32() -> None:
    """The file of a float32 plan is what it always was; one in bfloat16 holds a key more, and comes back equal."""
    values = {**_small(), "data": "random", "budget_bytes": 1, "predicted_peak_bytes": 0}
    plan = Plan(**values)
    assert "precision" not in plan.to_toml()
    assert Plan.from_toml(plan.to_toml()).precision == "float32"
    low = dataclasses.replace(plan, precision="bfloat16")
    assert 'precision = "bfloat16"' in low.to_toml()
    assert Plan.from_toml(low.to_toml()) == low
    with pytest.raises(PlanFormatError, match="precision = 'float16' is not known"):
        Plan.from_toml(low.to_toml().replace("bfloat16", "float16"))


def test_float16_is_refused_for_its_reason() -> None:
    """Half precision would need loss scaling; anything else is simply not known."""
    for name in (None, "auto", "float32", "bfloat16"):
        precision.check_precision(name)
    with pytest.raises(UsageError, match="loss scaling"):
        precision.check_precision("float16")
    with pytest.raises(
        UsageError, match="'int8' is not known; choose one of float32, bfloat16, auto"
    ):
        precision.check_precision("int8")


@pytest.mark.parametrize(
    ("machine", "line", "lacks"),
    [
        ("x86_64", "flags : fpu avx512bw avx512vl avx512dq", None),
        ("x86_64", "flags : fpu avx2 avx512bw", "AVX-512"),
        ("aarch64", "Features : fp asimd bf16 i8mm", None),
        ("aarch64", "Features : fp asimd asimdhp", "BF16"),
        ("aarch64", "", "BF16"),
    ],
)
def test_what_the_cpu_can(tmp_path: Path, machine: str, line: str, lacks: str | None) -> None:
    """Whether convolutions of bfloat16 go to oneDNN stands in /proc/cpuinfo."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(f"processor : 0\n{line}\n")
    with mock.patch("platform.machine", return_value=machine):
        found = precision.cpu_lacks_bfloat16(tmp_path)
    assert found is None if lacks is None else lacks in str(found)
