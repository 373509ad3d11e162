"""The tail of a unit: pool, dropout and operator, forward and hand-written backward.

A stage is a module on ``[N, ...]`` with N = T*B. The backward of a stage gets the stage's input again, never its output,
so nothing of the tail has to be kept. A module without an entry in `_BACKWARD` goes through ordinary autograd.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from revedge.engine.unit import GlobalMean, Unit, unfold_time

Gradients = dict[Tensor, Tensor]  # parameter -> its gradient


@dataclass(slots=True)
class Chance:
    """What replays the randomness of a tail: the seed of its dropout mask, the generator state of user modules."""

    seed: int | None = None
    rng_state: Tensor | None = None


def add_gradient(gradients: Gradients, parameter: Tensor | None, gradient: Tensor | None) -> None:
    """Add ``gradient`` to what ``parameter`` has got so far."""
    if parameter is None or gradient is None or not parameter.requires_grad:
        return
    seen = gradients.get(parameter)
    gradients[parameter] = gradient if seen is None else seen + gradient


def draw(unit: Unit) -> Chance:
    """Draw, in the forward pass, all that the tail needs of chance."""
    chance = Chance()
    if unit.training and unit.dropout:
        chance.seed = int(torch.randint(2**62, ()))
    if unit.training and any(_is_random(module) for module in (unit.pool, unit.op)):
        chance.rng_state = torch.get_rng_state()
    return chance


def tail_forward(unit: Unit, s: Tensor, chance: Chance) -> Tensor:
    """Pool, drop out and operate on ``s`` ``[T, B, ...]``."""
    for stage in _stages(unit, chance):
        s = stage.forward(s)
    return s


def tail_backward(
    unit: Unit, s: Tensor, chance: Chance, g: Tensor, gradients: Gradients, *, need_input: bool
) -> Tensor | None:
    """Return the gradient of ``s`` and add those of the parameters; ``g`` is the gradient of the tail's output."""
    stages = list(_stages(unit, chance))
    inputs = [s]
    for stage in stages[:-1]:
        inputs.append(stage.forward(inputs[-1]))
    for stage in reversed(stages):
        x = inputs.pop()
        g_or_none = stage.backward(x, g, gradients, need_input or bool(inputs))
        if g_or_none is None:
            return None
        g = g_or_none
    return g


class _Stage:
    """A module applied to ``[T, B, ...]`` by folding time into the batch."""

    def __init__(self, module: nn.Module, chance: Chance) -> None:
        self.module, self.rng_state = module, chance.rng_state if _is_random(module) else None

    def forward(self, x: Tensor) -> Tensor:
        with _replayed(self.rng_state):
            y: Tensor = self.module(x.flatten(0, 1))
        return unfold_time(y, x)

    def backward(
        self, x: Tensor, g: Tensor, gradients: Gradients, need_input: bool
    ) -> Tensor | None:
        backward = _BACKWARD.get(type(self.module), _by_autograd)
        with _replayed(self.rng_state):
            g_x = backward(self.module, x.flatten(0, 1), g.flatten(0, 1), gradients, need_input)
        return None if g_x is None else unfold_time(g_x, x)


class _Dropout:
    """One mask ``[B, ...]`` for all time steps, made anew from its seed whenever it is needed."""

    def __init__(self, probability: float, seed: int) -> None:
        self.probability, self.seed = probability, seed

    def forward(self, x: Tensor) -> Tensor:
        generator = torch.Generator(device=x.device).manual_seed(self.seed)
        kept = torch.rand(x.shape[1:], generator=generator, device=x.device) >= self.probability
        return x * (kept.to(x.dtype) * (1.0 / (1.0 - self.probability)))

    def backward(
        self, x: Tensor, g: Tensor, gradients: Gradients, need_input: bool
    ) -> Tensor | None:
        del x, gradients
        return self.forward(g) if need_input else None


def _stages(unit: Unit, chance: Chance) -> Iterator[_Stage | _Dropout]:
    if unit.pool is not None:
        yield _Stage(unit.pool, chance)
    if chance.seed is not None:
        yield _Dropout(unit.dropout, chance.seed)
    if unit.op is not None:
        yield _Stage(unit.op, chance)


class _replayed:  # noqa: N801 - reads as a verb at its use
    """Run with the generator where it was in the forward pass, then put it back."""

    def __init__(self, rng_state: Tensor | None) -> None:
        self.rng_state = rng_state

    def __enter__(self) -> None:
        if self.rng_state is not None:
            self.before = torch.get_rng_state()
            torch.set_rng_state(self.rng_state)

    def __exit__(self, *_: object) -> None:
        if self.rng_state is not None:
            torch.set_rng_state(self.before)


def _is_random(module: nn.Module | None) -> bool:
    """Whether a module may draw random numbers: any that the engine does not know."""
    if isinstance(module, nn.Sequential):
        return any(_is_random(part) for part in module)
    return module is not None and type(module) not in _BACKWARD


_Backward = Callable[[nn.Module, Tensor, Tensor, Gradients, bool], Tensor | None]


def _by_autograd(
    module: nn.Module, x: Tensor, g: Tensor, gradients: Gradients, need_input: bool
) -> Tensor | None:
    parameters = [p for p in module.parameters() if p.requires_grad]
    with torch.enable_grad():
        leaf = x.detach().requires_grad_(need_input)
        # A product and a sum, because an explicit output gradient would import sympy (33 MB) into the training.
        loss = (module(leaf) * g).sum()
        wanted = parameters + ([leaf] if need_input else [])
        found = torch.autograd.grad(loss, wanted, allow_unused=True) if wanted else ()
    for parameter, gradient in zip(parameters, found, strict=False):
        add_gradient(gradients, parameter, gradient)
    if not need_input:
        return None
    return torch.zeros_like(x) if found[-1] is None else found[-1]


def _conv2d(
    module: nn.Module, x: Tensor, g: Tensor, gradients: Gradients, need_input: bool
) -> Tensor | None:
    assert isinstance(module, nn.Conv2d)
    if isinstance(module.padding, str) or module.padding_mode != "zeros":
        return _by_autograd(module, x, g, gradients, need_input)
    bias_sizes = None if module.bias is None else [module.out_channels]
    g_x, g_w, g_b = torch.ops.aten.convolution_backward(
        g, x, module.weight, bias_sizes, module.stride, module.padding, module.dilation, False, [0, 0],
        module.groups, [need_input, module.weight.requires_grad, module.bias is not None],
    )  # fmt: skip
    add_gradient(gradients, module.weight, g_w)
    add_gradient(gradients, module.bias, g_b)
    return g_x if need_input else None


def _linear(
    module: nn.Module, x: Tensor, g: Tensor, gradients: Gradients, need_input: bool
) -> Tensor | None:
    assert isinstance(module, nn.Linear)
    g_2d, x_2d = g.flatten(0, -2), x.flatten(0, -2)
    if module.weight.requires_grad:
        add_gradient(gradients, module.weight, g_2d.t() @ x_2d)
    if module.bias is not None:
        add_gradient(gradients, module.bias, g_2d.sum(0))
    return g @ module.weight if need_input else None


def _avg_pool(
    module: nn.Module, x: Tensor, g: Tensor, gradients: Gradients, need_input: bool
) -> Tensor | None:
    del gradients
    assert isinstance(module, nn.AvgPool2d)
    if not need_input:
        return None
    stride = module.kernel_size if module.stride is None else module.stride
    g_x: Tensor = torch.ops.aten.avg_pool2d_backward(
        g, x, _pair(module.kernel_size), _pair(stride), _pair(module.padding),
        module.ceil_mode, module.count_include_pad, module.divisor_override,
    )  # fmt: skip
    return g_x


def _max_pool(
    module: nn.Module, x: Tensor, g: Tensor, gradients: Gradients, need_input: bool
) -> Tensor | None:
    del gradients
    assert isinstance(module, nn.MaxPool2d)
    if not need_input:
        return None
    window = (
        _pair(module.kernel_size),
        _pair(module.stride),
        _pair(module.padding),
        _pair(module.dilation),
    )
    _, indices = torch.ops.aten.max_pool2d_with_indices(x, *window, module.ceil_mode)
    backward = torch.ops.aten.max_pool2d_with_indices_backward
    g_x: Tensor = backward(g, x, *window, module.ceil_mode, indices)
    return g_x


def _global_mean(
    module: nn.Module, x: Tensor, g: Tensor, gradients: Gradients, need_input: bool
) -> Tensor | None:
    del module, gradients
    if not need_input:
        return None
    share = g * (1.0 / (x.shape[-1] * x.shape[-2]))
    return share[..., None, None].expand(x.shape).contiguous()


def _flatten(
    module: nn.Module, x: Tensor, g: Tensor, gradients: Gradients, need_input: bool
) -> Tensor | None:
    del module, gradients
    return g.reshape(x.shape) if need_input else None


def _sequence(
    module: nn.Module, x: Tensor, g: Tensor, gradients: Gradients, need_input: bool
) -> Tensor | None:
    assert isinstance(module, nn.Sequential)
    parts, inputs = list(module), [x]
    for part in parts[:-1]:
        inputs.append(part(inputs[-1]))
    current: Tensor | None = g
    for part in reversed(parts):
        if current is None:
            return None
        part_input = inputs.pop()
        backward = _BACKWARD.get(type(part), _by_autograd)
        current = backward(part, part_input, current, gradients, need_input or bool(inputs))
    return current


def _pair(value: int | tuple[int, ...]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


_BACKWARD: dict[type, _Backward] = {
    nn.Conv2d: _conv2d,
    nn.Linear: _linear,
    nn.AvgPool2d: _avg_pool,
    nn.MaxPool2d: _max_pool,
    nn.Flatten: _flatten,
    nn.Sequential: _sequence,
    GlobalMean: _global_mean,
}
