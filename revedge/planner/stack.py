"""Traces of deep nets at the cost of shallow ones: of a stack of equal blocks only some are run.

Blocks of a stack that stand between others take the same bytes, keep the same on the tape, and leave the same
gradients. So memory is a line in their number at every moment of a step, and its maximum over the blocks that are left
out is at one of their ends, which are run. What the others would keep at each moment is added to the trace:

    weights, optimizer   of the blocks left out, always
    activations          what each keeps, from their forward pass to their backward
    gradients            what one block leaves behind, from there to the end of the step

Each is measured in the trace between two neighbors, not computed. The result equals the trace of the whole net to the
byte, which is tested (`tests/planner/test_stack.py`): blocks are equal, so nothing is approximated.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from revedge import models
from revedge.engine import Branch, Coupling, Residual, coupling, residual
from revedge.errors import UsageError
from revedge.models.folded import branches_of
from revedge.models.net import SpikingNet
from revedge.planner.setting import Setting
from revedge.planner.tracer import StorageTracker
from revedge.planner.work import Work
from revedge.user_code import is_user_model

_LEAST_BLOCKS = 5  # of a stage that is run: the first, the last, and three between, the entry to a stage taken off


def shallower(setting: Setting) -> tuple[Setting, int]:
    """Return ``setting`` with less depth, and how many blocks every stack then lacks (0: nothing was left out)."""
    depth = setting.model_options.get("depth")
    if depth is None or is_user_model(setting.model):  # whose blocks need not be equal
        return setting, 0
    stages = _stages(setting.model, setting.in_shape)
    if stages == 0 or depth // stages <= _LEAST_BLOCKS:
        return setting, 0
    left_out = depth // stages - _LEAST_BLOCKS
    options = {**setting.model_options, "depth": depth - left_out * stages}
    return dataclasses.replace(setting, model_options=options), left_out


@functools.lru_cache(maxsize=1000)
def _stages(model: str, in_shape: tuple[int, int, int]) -> int:
    """Number of stacks, each of which grows by one block when so many are added; 0 where that is not so."""

    def lengths(depth: int) -> list[int]:
        with torch.device("meta"):
            net = models.create(model, in_shape=in_shape, num_classes=2, timesteps=1, depth=depth)
        return [len(branches_of(run)) for run in stacks(net)]

    try:
        few = lengths(_LEAST_BLOCKS * 6)
        more = lengths(_LEAST_BLOCKS * 6 + len(few))
    except UsageError:  # it has no depth
        return 0
    grown = {after - before for before, after in zip(few, more, strict=True)}
    return len(few) if len(grown) == 1 and grown != {0} else 0


@contextmanager
def cut_short(net: SpikingNet) -> Iterator[dict[Residual | Coupling, int]]:
    """While it lasts, stacks of ``net`` run without most of their equal blocks; yields how many blocks each lacks.

    Those of a module under `apply` that stand in for them in evaluation are cut, too; they keep nothing. Blocks whose
    parameters are used by another one are left alone.
    """
    whole, lacking = dict[Residual | Coupling, list[Branch]](), dict[Residual | Coupling, int]()
    in_training = set(net.runs())
    for run in net.strategy_settings():
        if not isinstance(run, Residual | Coupling):
            continue
        branches = branches_of(run)
        size = 2 if isinstance(run, Coupling) else _period(branches)
        few = _LEAST_BLOCKS * size
        own = [p for branch in branches for p in branch.parameters()]
        if len(branches) <= few or len(set(own)) < len(own) or not _equal(branches, size):
            continue
        if run in in_training:
            lacking[run] = (len(branches) - few) // size
        whole[run] = branches
        end = 2 * size
        _give(run, [*branches[: few - end], *branches[-end:]])
    try:
        yield lacking
    finally:
        for run, branches in whole.items():
            _give(run, branches)


def _give(run: Residual | Coupling, branches: list[Branch]) -> None:
    """Let ``run`` consist of ``branches``, those of a coupling in turn."""
    if isinstance(run, Coupling):
        run.f, run.g = nn.ModuleList(branches[::2]), nn.ModuleList(branches[1::2])
    else:
        run.branches = nn.ModuleList(branches)


def _equal(branches: list[Branch], size: int) -> bool:
    """Whether the branches repeat after ``size`` of them, in all that a module says of itself."""

    def look(branch: Branch) -> list[object]:
        plain = (bool, int, float, str, type(None))
        return [
            (
                type(module),
                [(name, value) for name, value in vars(module).items() if type(value) in plain],
                [
                    (name, p.shape, p.dtype, p.requires_grad)
                    for name, p in module.named_parameters()
                ],
            )
            for module in branch.modules()
        ]

    looks = [look(branch) for branch in branches]
    return len(branches) % size == 0 and looks[size:] == looks[:-size]


def stacks(net: SpikingNet) -> list[Residual | Coupling]:
    """Return the runs of ``net`` that are blocks in turn."""
    return [run for run in net.runs() if isinstance(run, Residual | Coupling)]


class LeftOut:
    """Adds to a trace what more blocks of the stacks of a net would take.

    Args:
        counts: blocks that each stack lacks.
        tracker: of the trace.
        slots: tensors that the optimizer keeps per parameter; None where weights and optimizer of the blocks are there.
        counted: it also keeps a number per parameter.
    """

    def __init__(
        self,
        counts: Mapping[Residual | Coupling, int],
        tracker: StorageTracker,
        *,
        slots: int | None,
        counted: bool,
    ) -> None:
        self._tracker = tracker
        self._forward: dict[Branch, _Place] = {}
        self._backward: dict[Branch, _Place] = {}
        self._places: list[_Place] = []
        self.parameters = self.parameter_tensors = self.sgd_bytes = 0
        for run, count in counts.items():
            branches = branches_of(run)
            size = 2 if isinstance(run, Coupling) else _period(branches)
            cut = len(branches) - 2 * size
            place = _Place(branches[cut - size : cut], count)
            self._places.append(place)
            self._forward |= {branches[cut - size]: place, branches[cut]: place}
            self._backward |= {branches[cut + size - 1]: place, branches[cut - 1]: place}
        for place in self._places if slots is not None else []:
            self._add_static(place, slots or 0, counted=counted)

    def _add_static(self, place: "_Place", slots: int, *, counted: bool) -> None:
        """Count weights and optimizer of the blocks left out."""
        own, taken_bytes = place.parameters(), self._tracker.taken_bytes
        buffers = [b for branch in place.block for b in branch.buffers()]
        sizes = sum(map(taken_bytes, own))
        numbers = taken_bytes(torch.zeros((), device="meta")) * len(own) if counted else 0
        self.parameter_tensors += place.count * len(own)
        self.parameters += place.count * sum(p.numel() for p in own)
        self.sgd_bytes += place.count * sizes
        weights = place.count * (sizes + sum(map(taken_bytes, buffers)))
        extra = self._tracker.extra
        extra["weights"] = extra.get("weights", 0) + weights
        extra["optimizer"] = extra.get("optimizer", 0) + place.count * (slots * sizes + numbers)

    @contextmanager
    def followed(self) -> Iterator[None]:
        """While it lasts, the beginnings of blocks are noticed."""
        with ExitStack() as stack:
            for module in (residual, coupling):
                for name, places, act in (
                    ("branch_forward", self._forward, self._in_forward),
                    ("replay_of", self._backward, self._in_backward),
                ):
                    own = _noticed(getattr(module, name), places, act)
                    stack.enter_context(mock.patch.object(module, name, own))
            yield

    def after_backward(self) -> None:
        """Count the gradients that are left: those of autograd, after it has summed them."""
        self._tracker.extra["gradients"] = sum(
            place.count * self._tracker.taken_bytes(p.grad)
            for place in self._places
            for p in place.parameters()
            if p.grad is not None
        )
        self._tracker.extra["activations"] = 0

    def _in_forward(self, place: "_Place") -> None:
        grown = self._passed(place)
        if grown is not None:
            place.kept_bytes = grown
            self._add(place, "activations", grown)

    def _in_backward(self, place: "_Place") -> None:
        grown = self._passed(place)
        if grown is not None:
            self._add(place, "activations", -place.kept_bytes)
            summed = [p for p in place.parameters() if p.grad is not None]
            # Of a second micro-batch they are temporary: autograd adds them to what is there.
            kind = "activations" if summed else "gradients"
            self._add(place, kind, grown + place.kept_bytes)
            work = self._tracker.work
            work.calls += place.count * len(summed)
            work.moved_bytes += place.count * 2 * sum(p.untyped_storage().nbytes() for p in summed)

    def _passed(self, place: "_Place") -> int | None:
        """Return by how much a block has made the live bytes grow; None where it begins."""
        tracker, before = self._tracker, place.before
        if before is None:
            place.before = (tracker.live_bytes, dataclasses.replace(tracker.work))
            return None
        place.before = None
        tracker.work.add_since(before[1], place.count)
        return tracker.live_bytes - before[0]

    def _add(self, place: "_Place", kind: str, one_bytes: int) -> None:
        self._tracker.extra[kind] = self._tracker.extra.get(kind, 0) + place.count * one_bytes
        self._tracker.note()


class _Place:
    """Where ``count`` blocks are left out of one stack: behind ``block``, which is like its neighbor."""

    def __init__(self, block: list[Branch], count: int) -> None:
        self.block, self.count = block, count
        self.kept_bytes = 0
        self.before: tuple[int, Work] | None = None  # live bytes and work where a block began

    def parameters(self) -> list[Tensor]:
        """Parameters of the block."""
        return [p for branch in self.block for p in branch.parameters() if p.requires_grad]


def one_block(run: Residual | Coupling) -> list[Branch]:
    """Return the branches of the last block of ``run``."""
    branches = branches_of(run)
    return branches[-(2 if isinstance(run, Coupling) else _period(branches)) :]


def _period(branches: list[Branch]) -> int:
    """Number of branches of a block: after so many, modules and shapes repeat."""
    looks = [repr(branch) for branch in branches]
    return next(size for size in range(1, len(looks) + 1) if looks[size:] == looks[:-size])


def _noticed(
    function: Callable[..., Any], places: dict[Branch, _Place], act: Callable[[_Place], None]
) -> Callable[..., Any]:
    def call(branch: Branch, *args: Any, **kwargs: Any) -> Any:
        if branch in places:
            act(places[branch])
        return function(branch, *args, **kwargs)

    return call
