"""Follows the life of every storage while a computation runs on meta tensors, which take no memory.

The engine's real code runs; only the numbers are missing. So whatever it keeps, copies or frees is
counted, in any strategy, without a formula that could be forgotten. Runs in a child process
(importing torch's dispatch mode costs 72 MB) and knows nothing of spiking networks.
"""

import functools
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from revedge.planner.cuda_pool import Event
from revedge.planner.work import Work
from revedge.planner.workspace import Convolution, allocated_bytes

BACKWARD = "aten::convolution_backward"
_CONVOLUTIONS = ("aten::convolution", BACKWARD)
# Temporaries of a reference operator, in sizes of its largest tensor; see README.md.
_REFERENCE_FACTOR = 16


@dataclass(slots=True)
class Storage:
    """One block of memory: its size as allocated, and the operations before which it was made and freed."""

    size_bytes: int
    kind: str
    born: int
    died: int | None = None
    number: int = 0
    run: int | None = None  # of the network, in whose forward pass it was made


@dataclass(frozen=True, slots=True)
class _Made:
    """Shapes, strides and types of what an operator returned."""

    tensors: tuple[tuple[torch.Size, tuple[int, ...], torch.dtype] | None, ...]
    form: type | None  # of the sequence; None: one tensor

    @classmethod
    def of(cls, out: Any) -> "_Made":
        several = out if isinstance(out, tuple | list) else [out]
        facts = tuple(None if t is None else (t.shape, t.stride(), t.dtype) for t in several)
        return cls(facts, type(out) if isinstance(out, tuple | list) else None)

    def again(self) -> Any:
        made = [
            None if t is None else torch.empty_strided(t[0], t[1], dtype=t[2], device="meta")
            for t in self.tensors
        ]
        return made[0] if self.form is None else self.form(made)


_MOST_REMEMBERED = 100_000
_MADE: dict[Any, _Made] = {}  # operator and kinds of arguments -> what it makes


def convolution_call(name: str, args: tuple[Any, ...], made: list[Tensor]) -> Convolution:
    """Return the call that an operator is, from its arguments and results."""
    first = 1 if name == BACKWARD else 0
    x, weight, bias, stride, _, dilation = args[first : first + 6]
    y = args[0] if name == BACKWARD else made[0]
    return Convolution(
        x=tuple(x.shape),
        weight=tuple(weight.shape),
        y=tuple(y.shape),
        bias=bias is not None,
        stride=tuple(stride),
        dilation=tuple(dilation),
        groups=args[first + 8],
        wanted=(bool(args[10][0]), bool(args[10][1])) if name == BACKWARD else None,
        itemsize=x.element_size(),
    )


def _tensors(out: Any) -> Iterator[Tensor]:
    """Yield the tensors of an operator's result; a third of a trace's time when torch's own walk does it."""
    if isinstance(out, Tensor):
        yield out
    elif isinstance(out, tuple | list):
        for each in out:
            yield from _tensors(each)


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return func(*args, **kwargs)


@functools.cache
def _nature(func: Any) -> str:
    """Whether an operator works "in place" and returns its first argument, makes "new" ones, or else."""
    schema = func._schema
    if schema.name == "aten::_unsafe_view":  # its schema hides that it gives out its argument
        return "view"
    returned = [each.alias_info for each in schema.returns]
    if len(returned) == 1 and returned[0] is not None:
        first = schema.arguments[0].alias_info
        own = first is not None and first.is_write and first.before_set == returned[0].before_set
        # Some change the shape of their argument (set_, resize_): these have to run.
        return "in place" if own and torch.Tag.inplace_view not in func.tags else "view"
    tensors = all(str(each.type) in ("Tensor", "Tensor[]") for each in schema.returns)
    return "new" if tensors and returned and not any(returned) else "view"


def _signature(values: Any) -> Any:
    if isinstance(values, Tensor):
        return (values.shape, values.stride(), values.dtype, values.device)
    if isinstance(values, tuple | list):
        return tuple([_signature(each) for each in values])
    return (values, type(values))  # 1, 1.0 and True are equal and differ in type


class StorageTracker(TorchDispatchMode):
    """Live bytes of all storages made while it is active, and their peak.

    Args:
        page_bytes: size of a memory page.
        threads: CPU threads of the training.
        native_kernels: the C operators are there; without them a revedge operator is the reference,
            which has temporaries, and these are bounded.
        short_cuts: an operator that makes new tensors runs once for each kind of arguments, and one that works in
            place not at all: their results have no values. Three times faster.
    """

    def __init__(
        self,
        *,
        page_bytes: int,
        native_kernels: bool,
        threads: int = 1,
        short_cuts: bool = True,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._page_bytes = page_bytes
        self._native, self._threads = native_kernels, threads
        self._run = self._quickly if short_cuts else _run
        self._live: dict[int, Storage] = {}
        self._ends: dict[int, Any] = {}  # of the live ones
        self.storages: list[Storage] = []
        self.events: list[Event] = []  # in order: (number of a storage, its bytes; 0 where it ends)
        self.operations = 0
        self.live_bytes = 0
        self.peak_bytes = 0
        self.peak_workspace_bytes = 0
        self.peak_operation = 0
        self.convolutions: set[Convolution] = set()  # those that oneDNN computes
        self.run: int | None = None  # that is in its forward pass; set from outside
        self.narrow = False  # one of them as a matrix product
        self.work = Work()
        self.extra: dict[str, int] = {}  # bytes by kind beside the storages that are followed
        self._extra_at_peak: dict[str, int] = {}

    def let_go(self) -> None:
        """Follow no storage any longer; those that live on, of a net that is kept, would hold this tracker."""
        for end in self._ends.values():
            end.detach()

    def taken_bytes(self, tensor: Tensor) -> int:
        """Return what malloc takes for the storage of ``tensor``."""
        return allocated_bytes(tensor.untyped_storage().nbytes(), self._page_bytes)

    def note(self) -> None:
        """Look whether this moment is the peak; for who has changed `extra`."""
        self._note_peak(0)

    def add(self, tensors: Iterable[Tensor], kind: str = "activations") -> None:
        """Count the storages of ``tensors`` that are not counted yet."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self._live:
                continue
            size = self.taken_bytes(tensor)
            record = Storage(size, kind, self.operations, run=self.run)
            self._live[key] = record
            self.events.append((len(self.storages), tensor.untyped_storage().nbytes()))
            record.number = len(self.storages)
            self.storages.append(record)
            self.live_bytes += size
            end = weakref.finalize(storage, self._free, key)
            end.atexit = False
            self._ends[key] = end
        self._note_peak(0)

    def name(self, tensors: Iterable[Tensor], kind: str) -> None:
        """Say of what kind the counted storages of ``tensors`` are."""
        for tensor in tensors:
            self._live[tensor.untyped_storage()._cdata].kind = kind

    def bytes_at_peak(self) -> dict[str, int]:
        """Return live bytes by kind at the peak; with `peak_workspace_bytes` they sum to `peak_bytes`."""
        found = dict(self._extra_at_peak)
        for each in self._alive_at_peak():
            found[each.kind] = found.get(each.kind, 0) + each.size_bytes
        return found

    def kept_at_peak(self, runs: int) -> list[int]:
        """Return the activations at the peak that each run's forward pass has made."""
        found = [0] * runs
        for each in self._alive_at_peak():
            if each.kind == "activations" and each.run is not None:
                found[each.run] += each.size_bytes
        return found

    def _alive_at_peak(self) -> Iterator[Storage]:
        peak = self.peak_operation
        for each in self.storages:
            if each.born <= peak and (each.died is None or each.died > peak):
                yield each

    def _free(self, key: int) -> None:
        record = self._live.pop(key)
        del self._ends[key]
        record.died = self.operations
        self.events.append((record.number, 0))
        self.live_bytes -= record.size_bytes

    def _note_peak(self, workspace: int) -> None:
        total = self.live_bytes + sum(self.extra.values()) + workspace
        if total > self.peak_bytes:
            self.peak_bytes = total
            self._extra_at_peak = dict(self.extra)
            self.peak_workspace_bytes = workspace
            self.peak_operation = self.operations

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run one operator, count what it made, and look whether this is the peak."""
        name = func._schema.name
        if name == "aten::_local_scalar_dense":
            return 1  # a meta tensor has no value: checks such as bool((w > 0).all()) pass
        out = self._run(func, args, kwargs or {})
        self.operations += 1
        made = list(_tensors(out))
        if _nature(func) != "view":
            given = [each for each in args if isinstance(each, Tensor)]
            self.work.count(name, args, given + [each for each in made if each is not args[0]])
        self.add(made)
        workspace = self._workspace(name, args, made)
        if workspace:
            self._note_peak(workspace)
            self.events += [(-self.operations, workspace), (-self.operations, 0)]
        self.operations += 1  # what dies from here on was alive at the peak that was just noted
        return out

    def _quickly(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        nature = _nature(func)
        if nature == "in place":
            return args[0]
        if nature == "view":
            return func(*args, **kwargs)
        key = (func, _signature(args), _signature(tuple(kwargs.items())))
        made = _MADE.get(key)
        if made is None:
            out = func(*args, **kwargs)
            if len(_MADE) < _MOST_REMEMBERED:
                _MADE[key] = _Made.of(out)
            return out
        return made.again()

    def _workspace(self, name: str, args: tuple[Any, ...], made: list[Tensor]) -> int:
        if name in _CONVOLUTIONS:
            call = convolution_call(name, args, made)
            if call.is_for_onednn(self._threads):
                self.convolutions.add(call)
                self.narrow |= call.narrow
            return call.workspace_bytes(self._threads)
        if name.startswith("revedge::") and not self._native:
            tensors = [each for each in (*args, *made) if isinstance(each, Tensor)]
            return _REFERENCE_FACTOR * max(each.numel() * 4 for each in tensors)
        return 0
