"""A run: blocks that one autograd function carries, so that memory does not grow with depth."""

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from revedge.engine.autocast import autocast_state
from revedge.engine.output import Output
from revedge.engine.settings import StrategySettings
from revedge.engine.signal import chunks_of
from revedge.engine.strategy import Saving
from revedge.engine.vjp import Gradients, Update
from revedge.engine.weights import Weights
from revedge.errors import ReversibilityError
from revedge.neurons.first_order import first_derivative_only

_PIECE = 1 << 15
_SECOND = "take the gradient of revedge.models.plain.plain_forward(net, x), or leave the module out of apply"


class Given:
    """A tensor handed over: who takes it holds the only reference, and may write to it if it is ``free``."""

    def __init__(self, tensor: Tensor, *, free: bool) -> None:
        self._tensor: Tensor | None = tensor
        self.free = free

    def take(self) -> Tensor:
        """Return the tensor, to be read, and forget it."""
        tensor, self._tensor = self._tensor, None
        assert tensor is not None
        return tensor

    def lend(self) -> "Given":
        """Return the tensor for reading, and keep it for who takes it later."""
        assert self._tensor is not None
        return Given(self._tensor, free=False)

    def take_writable(self) -> Tensor:
        """Return the tensor if it is free, else a copy."""
        tensor = self.take()
        return (
            tensor
            if self.free and tensor.is_contiguous()
            else tensor.clone(memory_format=torch.contiguous_format)
        )


class Carried(Protocol):
    """What `carry` needs: a forward that leaves a tape, and a backward that uses it up."""

    @property
    def keeps_input(self) -> bool:
        """Whether the backward needs the input itself."""
        ...

    @property
    def keeps_output(self) -> bool:
        """Whether the backward needs the output itself."""
        ...

    @property
    def update(self) -> Update | None:
        """What updates a parameter in the backward pass, if any."""
        ...

    @property
    def chunk_bytes(self) -> int | None:
        """See `Run`."""
        ...

    def modules(self) -> Iterable[nn.Module]:
        """Return the modules whose weights it reads, in forward and in backward."""
        ...

    def run_forward(self, x: Given, *, keep: bool) -> tuple[Tensor, Any]:
        """Return output and tape; ``keep`` False leaves the tape empty."""
        ...

    def run_backward(
        self,
        x: Tensor | Output | None,
        out: Given | None,
        tape: Any,
        g: Given,
        gradients: Gradients,
        *,
        need_input: bool,
    ) -> Tensor | None:
        """Return the gradient of the input (None unless ``need_input``) and fill ``gradients``.

        ``x`` is None unless `keeps_input`, ``out`` unless `keeps_output`.
        """
        ...


class Run(nn.Module, StrategySettings):
    """Base of `Feed`, `Residual`, `Coupling` and `Forks`; implements `Carried`.

    Attributes, besides those of `StrategySettings`:
        update: called with each parameter and its gradient in the backward pass, see `update_in_backward`.
        most_spans: of time that one of its blocks has gone backward in so far; 1 where none was cut.
    """

    keeps_input = False
    keeps_output = False

    def __init__(self, strategy: str = "reverse", check: str = "none") -> None:
        nn.Module.__init__(self)
        StrategySettings.__init__(self, strategy, check)
        self.update: Update | None = None
        self.most_spans = 1

    def saving(self, *, keep: bool) -> Saving:
        """How memory is saved; ``keep`` False leaves no tape."""
        return Saving(self.strategy, self.slab_bytes, keep)

    def forward(self, x: Tensor) -> Tensor:
        """Return the run's output for ``x`` ``[T, B, ...]``."""
        return carry(self, x, [p for p in self.parameters() if p.requires_grad])

    @abstractmethod
    def run_forward(self, x: Given, *, keep: bool) -> tuple[Tensor, Any]:
        """See `Carried`."""

    @abstractmethod
    def run_backward(
        self,
        x: Tensor | Output | None,
        out: Given | None,
        tape: Any,
        g: Given,
        gradients: Gradients,
        *,
        need_input: bool,
    ) -> Tensor | None:
        """See `Carried`."""

    @abstractmethod
    def step(self, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """One time step with explicit states, in plain PyTorch; takes its states from the front of ``states``."""


def carry(run: Carried, x: Tensor, parameters: list[Tensor]) -> Tensor:
    """Apply ``run`` to ``x``, as one autograd function if any gradient is wanted.

    What autocast made of ``x`` becomes float32 again: streams and membranes are.
    """
    x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    if torch.is_grad_enabled() and (x.requires_grad or parameters):
        out: Tensor = _Carry.apply(run, x, *parameters)  # type: ignore[no-untyped-call]
        return out
    with torch.no_grad(), autocast_state(x.device.type), chunks_of(run.chunk_bytes):
        return run.run_forward(Given(x.contiguous(), free=False), keep=False)[0]


class _Carry(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: Carried, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.autocast = autocast_state(x.device.type)
        with ctx.autocast, chunks_of(run.chunk_bytes):
            out, ctx.tape = run.run_forward(Given(x.detach().contiguous(), free=False), keep=True)
        ctx.run, ctx.parameters, ctx.used_up = run, parameters, False
        ctx.chunk_bytes, ctx.weights = run.chunk_bytes, Weights(run.modules())
        out = _own(out)
        # Without its history, as `out` itself would close a reference cycle; and not through autograd, which would
        # hold it for the whole backward pass.
        ctx.out = out.detach() if run.keeps_output else None
        ctx.out_version = out._version
        ctx.save_for_backward(x if run.keeps_input else None)
        return out

    @staticmethod
    @first_derivative_only("a run of the engine", _SECOND)
    def backward(ctx: Any, *g_outs: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        if ctx.used_up:
            raise ReversibilityError(
                "this run has been through backward already and its tape is used up; "
                "run the forward pass again (retain_graph does not keep it)"
            )
        (x,) = ctx.saved_tensors
        out = _unwritten(ctx)
        tape, ctx.tape, ctx.used_up = ctx.tape, None, True
        gradients = Gradients(ctx.run.update)
        with torch.no_grad(), ctx.autocast, chunks_of(ctx.chunk_bytes), ctx.weights.as_they_were():
            g_x = ctx.run.run_backward(
                None if x is None else x.contiguous(),
                out,
                tape,
                Given(g_outs[0].contiguous(), free=False),
                gradients,
                need_input=ctx.needs_input_grad[1],
            )
        return None, g_x, *(gradients.get(p) for p in ctx.parameters)


def _unwritten(ctx: Any) -> Given | None:
    """The output of the forward pass, if it is needed; ``ctx`` forgets it."""
    out, ctx.out = ctx.out, None
    if out is not None and out._version != ctx.out_version:
        raise ReversibilityError(
            f"what a run gave out {tuple(out.shape)} was written over (in place) between forward and backward, and its "
            "inputs are rebuilt from it; write to a clone of it, or leave the module out of apply"
        )
    return None if out is None else Given(out, free=False)


def _own(out: Tensor) -> Tensor:
    """``out`` as a tensor of its own on the same memory: autograd lets nobody write into a view made in a function."""
    return out.new_empty(0).set_(out) if out._is_view() else out  # type: ignore[call-overload]


class Checksums:
    """64-bit sums of block inputs: taken in forward, compared in backward, last block first."""

    def __init__(self, check: str) -> None:
        self.on = check == "checksum"
        self.sums: list[int] = []

    def take(self, x: Tensor) -> None:
        """Remember the sum of ``x``."""
        if self.on:
            self.sums.append(_sum_of_bits(x))

    def compare(self, x: Tensor, block: str) -> None:
        """Compare the sum of the rebuilt ``x`` with the one taken last.

        Raises:
            ReversibilityError: they differ.
        """
        if not self.on:
            return
        expected, found = self.sums.pop(), _sum_of_bits(x)
        if expected != found:
            raise ReversibilityError(
                f"the input of {block} was rebuilt with other bits than it had "
                f"(checksum {found} instead of {expected}); "
                "the forward pass was not repeated exactly: keep threads, memory layout and weights fixed between "
                "forward and backward, or use the strategy keep-conv or store"
            )


def _sum_of_bits(x: Tensor) -> int:
    # In pieces: torch widens what it sums to 64 bits first, and a plan does not count that.
    pieces = x.detach().contiguous().view(torch.int32).flatten().split(_PIECE)
    return sum(int(piece.sum(dtype=torch.int64)) for piece in pieces)
