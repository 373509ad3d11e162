"""Follows the life of every storage while a computation runs on meta tensors, which take no memory.

The engine's real code runs; only the numbers are missing. So whatever it keeps, copies or frees is
counted, in any strategy, without a formula that could be forgotten. Runs in a child process
(importing torch's dispatch mode costs 72 MB) and knows nothing of spiking networks.
"""

import functools
import math
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from revedge.allocator import MMAP_THRESHOLD_BYTES
from revedge.planner.cuda_pool import Event
from revedge.planner.work import Work

BACKWARD = "aten::convolution_backward"
_CONVOLUTIONS = ("aten::convolution", BACKWARD)
_PRODUCT_BYTES = 512 << 10  # that a matrix product of oneDNN works on
_LOW_PRODUCT_BYTES = (
    1 << 20
)  # that the gradient of a weight in bfloat16 works on, one strip after the other
_CHANNEL_BLOCK = 16  # oneDNN copies operands into blocks of up to 16 channels
_REFERENCE_FACTOR = (
    16  # temporaries of a reference operator, in sizes of its largest tensor; see README.md
)
_HEAP_HEADER_BYTES = 64


@dataclass(slots=True)
class Storage:
    """One block of memory: its size as allocated, and the operations before which it was made and freed."""

    size_bytes: int
    kind: str
    born: int
    died: int | None = None
    number: int = 0
    run: int | None = None  # of the network, in whose forward pass it was made


def allocated_bytes(nbytes: int, page_bytes: int) -> int:
    """Return what malloc takes for a tensor of ``nbytes`` under the policy of `revedge.allocator`.

    Tensors are aligned to 64 bytes. From 64 KiB on a block is a mapping of its own: whole pages,
    one more for the header and the alignment. Below, it lies on the heap behind a header.
    """
    if nbytes == 0:
        return 0
    rounded = -(-nbytes // 64) * 64
    if rounded + _HEAP_HEADER_BYTES < MMAP_THRESHOLD_BYTES:
        return rounded + _HEAP_HEADER_BYTES
    return (-(-rounded // page_bytes) + 1) * page_bytes


def workspace_bytes(shapes: Iterable[tuple[int, ...]], itemsize: int) -> int:
    """Return the bound on a convolution's hidden workspace: tensors of these shapes copied once, padded.

    Channels (of a weight: both) are padded to blocks of 16.
    """
    total = 0
    for shape in shapes:
        if len(shape) == 4:
            n, c, h, w = shape
            total += n * (-(-c // _CHANNEL_BLOCK) * _CHANNEL_BLOCK) * h * w * itemsize
    return total


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


def _copied(name: str, args: tuple[Any, ...], made: list[Tensor]) -> list[tuple[int, ...]]:
    """Return the shapes of what oneDNN copies to compute a convolution.

    Forward: input, weight and output. Backward: the gradient of the output, input and weight, one gradient after the
    other; that of the input of a strided convolution is made twice. In bfloat16 also a weight's gradient, which is
    summed in float32, and what a convolution of one sample by one pixel makes. Measured on x86-64 with oneDNN
    (`benchmarks/conv_workspace.py`): never below the real workspace.
    """
    back = name == BACKWARD
    x, weight = args[1:3] if back else args[:2]
    low = x.dtype != torch.float32
    single = low and x.shape[0] == 1 and max(weight.shape[2:]) == 1
    if not back:
        return [tuple(each.shape) for each in (x, weight, *made, *(made if single else []))]
    gradient, strided, groups, wanted = args[0], max(args[4]) > 1, args[9], args[10]
    again = [x] if wanted[0] and (strided or single) else []
    if groups > 1:  # not measured
        again = made
    if low and wanted[1]:
        again = [*again, weight]
    return [tuple(each.shape) for each in (gradient, x, weight, *again)]


def _is_for_onednn(name: str, args: tuple[Any, ...], threads: int) -> bool:
    """Whether torch has oneDNN compute a convolution; small ones of float32 it unfolds itself (Convolution.cpp)."""
    first = 1 if name == BACKWARD else 0
    x, weight, _, stride, _, dilation = args[first : first + 6]
    if x.dtype == torch.bfloat16:
        return True
    kernel, groups = weight.shape[2:], args[first + 8]
    one_by_one = max(kernel) == max(stride) == max(dilation) == 1
    if one_by_one and x.shape[0] < 16 and threads == 1:
        return False
    return bool(groups > 1 or min(kernel) > 3 or x.shape[0] > 1 or x.numel() > 20480)


def _unfolded_bytes(name: str, args: tuple[Any, ...], made: list[Tensor]) -> int:
    """Return the size of the columns that torch unfolds one input into for a matrix product."""
    x, weight = args[1:3] if name == BACKWARD else args[:2]
    y = args[0] if name == BACKWARD else made[0]
    return int(x.shape[1] * math.prod(weight.shape[2:]) * math.prod(y.shape[2:]) * 4)


def _is_narrow(name: str, args: tuple[Any, ...]) -> bool:
    """Whether oneDNN has no kernel for the gradient of a weight and unfolds it into a matrix product (found by trying).

    The product's generated code takes 4.5 MiB: a base of its own (base.py).
    """
    if name != BACKWARD or not args[10][1]:
        return False
    x, weight = args[1:3]
    return bool(3 < x.shape[1] < 16 and max(x.shape[2:]) < max(weight.shape[2:]))


def convolution_workspace_bytes(
    name: str, args: tuple[Any, ...], made: list[Tensor], threads: int = 1
) -> int:
    """Return the bound on what a convolution takes beside its operands and results.

    Args:
        name: ``aten::convolution`` or `BACKWARD`.
        args: of the operator.
        made: its results.
        threads: CPU threads.
    """
    if not _is_for_onednn(name, args, threads):
        return _unfolded_bytes(name, args, made)
    itemsize = args[0].element_size()
    works_on = _is_narrow(name, args) * _PRODUCT_BYTES
    if itemsize < 4 and name == BACKWARD and args[10][1]:
        works_on = _LOW_PRODUCT_BYTES
    return workspace_bytes(_copied(name, args, made), itemsize) + works_on


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
        self.storages: list[Storage] = []
        self.events: list[Event] = []  # in order: (number of a storage, its bytes; 0 where it ends)
        self.operations = 0
        self.live_bytes = 0
        self.peak_bytes = 0
        self.peak_workspace_bytes = 0
        self.peak_operation = 0
        self.convolutions: set[tuple[Any, ...]] = set()  # those that oneDNN computes
        self.run: int | None = None  # that is in its forward pass; set from outside
        self.narrow = False  # one of them as a matrix product
        self.work = Work()
        self.extra: dict[str, int] = {}  # bytes by kind beside the storages that are followed
        self._extra_at_peak: dict[str, int] = {}

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
            weakref.finalize(storage, self._free, key).atexit = False
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
            if _is_for_onednn(name, args, self._threads):
                tensors = [each for each in (*args, *made) if isinstance(each, Tensor)]
                shapes = (tuple(each.shape) for each in tensors)
                self.convolutions.add((name, args[0].dtype, *shapes))
                self.narrow |= _is_narrow(name, args)
            return convolution_workspace_bytes(name, args, made, self._threads)
        if name.startswith("revedge::") and not self._native:
            tensors = [each for each in (*args, *made) if isinstance(each, Tensor)]
            return _REFERENCE_FACTOR * max(each.numel() * 4 for each in tensors)
        return 0
