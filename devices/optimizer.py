"""AdamW and SGD with momentum over torch's fused operators, without `torch.optim`.

Constructing any `torch.optim` optimizer imports torch._dynamo and sympy: 72 MB of a training process. The fused
operators alone cost nothing, allocate nothing per step, and give the same bits as `torch.optim` with `fused=True`.

AdamW: Loshchilov and Hutter, arXiv 1711.05101, algorithm 2. SGD: Sutskever et al. 2013, as PyTorch words it.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from revedge.errors import UsageError

_WITHOUT_NEW: list[Tensor] = []


class Optimizer:
    """Parameters, their state as plain tensors, and one step.

    Weight decay applies to tensors of two or more dimensions: not to biases, normalization and leaks.
    The state is made at once, so that the first step needs no more memory than the others.

    Args:
        named_parameters: names (used in `state_tensors`) and parameters; those without requires_grad are left out.
        weight_decay: per unit of learning rate (AdamW: decoupled; SGD: added to the gradient).
    """

    slots: tuple[str, ...] = ()

    def __init__(
        self, named_parameters: Iterable[tuple[str, nn.Parameter]], *, weight_decay: float = 0.0
    ) -> None:
        self.named = [(name, p) for name, p in named_parameters if p.requires_grad]
        self._place = {p: place for place, (_, p) in enumerate(self.named)}
        self.weight_decay = weight_decay
        self.slot_tensors: dict[str, list[Tensor]] = {
            slot: [torch.zeros_like(p, memory_format=torch.preserve_format) for _, p in self.named]
            for slot in self.slots
        }

    def state_tensors(self) -> dict[str, Tensor]:
        """Return the live state, `"slot.parameter"` -> tensor (not a copy)."""
        return {
            f"{slot}.{name}": tensor
            for slot, tensors in self.slot_tensors.items()
            for (name, _), tensor in zip(self.named, tensors, strict=True)
        }

    def zero_grad(self) -> None:
        """Free all gradients."""
        for _, parameter in self.named:
            parameter.grad = None

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Update every parameter that has a gradient, in place."""
        for decayed in (True, False):
            chosen = [
                i
                for i, (_, p) in enumerate(self.named)
                if p.grad is not None and (p.ndim >= 2) is decayed
            ]
            gradients = [g for i in chosen if (g := self.named[i][1].grad) is not None]
            if chosen:
                self._update(chosen, gradients, learning_rate, decayed=decayed)

    @torch.no_grad()
    def update_now(self, parameter: nn.Parameter, gradient: Tensor, learning_rate: float) -> None:
        """Update one parameter, in place, from a gradient that is not in ``parameter.grad``.

        For `revedge.engine.update_in_backward`; over all parameters the same bits as one `step`.
        """
        self._update(
            [self._place[parameter]], [gradient], learning_rate, decayed=parameter.ndim >= 2
        )

    def _update(
        self, chosen: list[int], gradients: list[Tensor], learning_rate: float, *, decayed: bool
    ) -> None:
        raise NotImplementedError

    def _parameters(self, chosen: list[int]) -> list[Tensor]:
        return [self.named[i][1].detach() for i in chosen]


class AdamW(Optimizer):
    """Adam with decoupled weight decay; keeps two tensors per parameter and one float32 step count each."""

    slots = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        *,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(named_parameters, weight_decay=weight_decay)
        self.betas, self.eps = betas, eps
        self.slot_tensors["step"] = [
            torch.zeros((), dtype=torch.float32, device=p.device) for _, p in self.named
        ]

    def _update(
        self, chosen: list[int], gradients: list[Tensor], learning_rate: float, *, decayed: bool
    ) -> None:
        slots = {slot: [tensors[i] for i in chosen] for slot, tensors in self.slot_tensors.items()}
        torch._foreach_add_(slots["step"], 1.0)
        torch._fused_adamw_(
            self._parameters(chosen),
            gradients,
            slots["exp_avg"],
            slots["exp_avg_sq"],
            _WITHOUT_NEW,
            slots["step"],
            lr=learning_rate,
            beta1=self.betas[0],
            beta2=self.betas[1],
            weight_decay=self.weight_decay if decayed else 0.0,
            eps=self.eps,
            amsgrad=False,
            maximize=False,
        )


class SGD(Optimizer):
    """Stochastic gradient descent with momentum; keeps one tensor per parameter."""

    slots = ("momentum",)

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        *,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
    ) -> None:
        super().__init__(named_parameters, weight_decay=weight_decay)
        self.momentum = momentum

    def _update(
        self, chosen: list[int], gradients: list[Tensor], learning_rate: float, *, decayed: bool
    ) -> None:
        # A zero buffer gives momentum * 0 + gradient, which is the gradient that a first step starts from.
        torch._fused_sgd_(
            self._parameters(chosen),
            gradients,
            [self.slot_tensors["momentum"][i] for i in chosen],
            weight_decay=self.weight_decay if decayed else 0.0,
            momentum=self.momentum,
            lr=learning_rate,
            dampening=0.0,
            nesterov=False,
            maximize=False,
            is_first_step=False,
        )


def create(
    name: str, named_parameters: Iterable[tuple[str, nn.Parameter]], *, weight_decay: float
) -> Optimizer:
    """Return the optimizer called `name` ("adamw" or "sgd").

    Raises:
        UsageError: there is no such optimizer.
    """
    kinds: dict[str, type[AdamW | SGD]] = {"adamw": AdamW, "sgd": SGD}
    if name.lower() not in kinds:
        raise UsageError(f"optimizer {name!r} is unknown; choose one of {', '.join(kinds)}")
    return kinds[name.lower()](named_parameters, weight_decay=weight_decay)
