"""Hand-written backward of the modules that a unit's tail is made of.

Each takes the module, its input ``[N, ...]``, the gradient of its output, the dictionary that parameter gradients are
added to, and whether the gradient of the input is wanted. None needs the module's output, so nothing of a tail has to
be kept. A module without an entry in `_BACKWARD` goes through ordinary autograd.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from revedge import kernels
from revedge.engine.attention import SpikeAttention
from revedge.engine.autocast import called, lowered
from revedge.engine.layers import Twice, Voting
from revedge.engine.pooled import pool_window
from revedge.engine.unit import GlobalMean

Update = Callable[[nn.Parameter, Tensor], None]


class Gradients(dict[Tensor, Tensor]):
    """Parameters and their gradients, as far as they have been found in a backward pass.

    Args:
        update: takes a parameter and its gradient as soon as that is complete (see `update_in_backward`).
    """

    def __init__(self, update: Update | None = None) -> None:
        super().__init__()
        self.update_parameter = update

    def wants(self, parameter: Tensor | None) -> bool:
        """Whether the gradient of ``parameter`` is asked for."""
        return parameter is not None and parameter.requires_grad

    def settle(self, module: nn.Module) -> None:
        """Say that the backward of ``module`` is done: where parameters are updated at once, its are, and forgotten."""
        if self.update_parameter is not None:
            for parameter in module.parameters():
                if parameter in self:
                    self.update_parameter(parameter, self.pop(parameter))


class InputsOnly(Gradients):
    """For a second look at a backward pass whose parameters have got their gradients: nothing is asked for."""

    def wants(self, parameter: Tensor | None) -> bool:
        """See `Gradients`."""
        del parameter
        return False


def add_gradient(gradients: Gradients, parameter: Tensor | None, gradient: Tensor | None) -> None:
    """Add ``gradient``, which nobody else holds, to what ``parameter`` has got so far."""
    if parameter is None or gradient is None or not gradients.wants(parameter):
        return
    gradient = gradient.to(parameter.dtype)  # autocast computes it in less
    seen = gradients.get(parameter)
    gradients[parameter] = gradient if seen is None else seen.add_(gradient)


def module_forward(module: nn.Module, x: Tensor) -> Tensor:
    """Return ``module(x)``, by a kernel of ours where that is faster."""
    if isinstance(module, nn.Sequential) and is_known(module):
        for part in module:
            x = module_forward(part, x)
        return x
    window = pool_window(module)
    if window is not None and not window.average:
        return kernels.max_pool(x, *window[:3])
    return called(module, x)


def module_backward(
    module: nn.Module, x: Tensor, g: Tensor, gradients: Gradients, *, need_input: bool
) -> Tensor | None:
    """Return the gradient of ``x`` (None unless ``need_input``) and add those of the parameters."""
    # A sequence with chance in it is replayed as a whole: part by part it would draw anew.
    backward = _BACKWARD.get(type(module), _by_autograd) if is_known(module) else _by_autograd
    g_x = backward(module, x, g, gradients, need_input)
    return None if g_x is None else g_x.to(x.dtype)


def is_known(module: nn.Module | None) -> bool:
    """Whether each sample of the module's output depends on that sample alone, without chance, as we know it."""
    if isinstance(module, nn.Sequential):
        return all(is_known(part) for part in module)
    return module is None or type(module) in _BACKWARD or type(module) in _SAMPLE_WISE


_Backward = Callable[[nn.Module, Tensor, Tensor, Gradients, bool], Tensor | None]


def _by_autograd(
    module: nn.Module, x: Tensor, g: Tensor, gradients: Gradients, need_input: bool
) -> Tensor | None:
    parameters = [p for p in module.parameters() if gradients.wants(p)]
    with torch.enable_grad():
        leaf = x.detach().requires_grad_(need_input)
        # A product and a sum, because an explicit output gradient would import sympy (33 MB) into the training.
        loss = (called(module, leaf) * g).sum()
        wanted = [*parameters, leaf] if need_input else parameters
        found = list(torch.autograd.grad(loss, wanted, allow_unused=True)) if wanted else []
    g_x = found.pop() if need_input else None
    for parameter, gradient in zip(parameters, found, strict=True):
        add_gradient(gradients, parameter, gradient)
    return torch.zeros_like(x) if need_input and g_x is None else g_x


def _conv2d(
    module: nn.Module, x: Tensor, g: Tensor, gradients: Gradients, need_input: bool
) -> Tensor | None:
    assert isinstance(module, nn.Conv2d)
    if isinstance(module.padding, str) or module.padding_mode != "zeros":
        return _by_autograd(module, x, g, gradients, need_input)
    bias_sizes = None if module.bias is None else [module.out_channels]
    g, x, weight = lowered(g, x, module.weight)
    g_x, g_w, g_b = torch.ops.aten.convolution_backward(
        g, x, weight, bias_sizes, module.stride, module.padding, module.dilation, False, [0, 0],
        module.groups, [need_input, gradients.wants(module.weight), gradients.wants(module.bias)],
    )  # fmt: skip
    add_gradient(gradients, module.weight, g_w)
    add_gradient(gradients, module.bias, g_b)
    return g_x if need_input else None


def _linear(
    module: nn.Module, x: Tensor, g: Tensor, gradients: Gradients, need_input: bool
) -> Tensor | None:
    assert isinstance(module, nn.Linear)
    g_2d, x_2d = g.flatten(0, -2), x.flatten(0, -2)
    if gradients.wants(module.weight):
        g_low, x_low = lowered(g_2d, x_2d)
        add_gradient(gradients, module.weight, g_low.t() @ x_low)
        del g_low, x_low
    if gradients.wants(module.bias):
        add_gradient(gradients, module.bias, g_2d.sum(0))
    if not need_input:
        return None
    g_low, weight = lowered(g, module.weight)
    return g_low @ weight


def _avg_pool(
    module: nn.Module, x: Tensor, g: Tensor, gradients: Gradients, need_input: bool
) -> Tensor | None:
    del gradients
    assert isinstance(module, nn.AvgPool2d)
    if not need_input:
        return None
    stride = module.kernel_size if module.stride is None else module.stride
    g_x: Tensor = torch.ops.aten.avg_pool2d_backward(
        g.to(x.dtype), x, _pair(module.kernel_size), _pair(stride), _pair(module.padding),
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
    known = pool_window(module)
    if known is not None:
        return kernels.max_pool_backward(x, g.to(x.dtype).contiguous(), *known[:3])
    sizes = (module.kernel_size, module.stride, module.padding, module.dilation)
    window = [_pair(size) for size in sizes]
    _, indices = torch.ops.aten.max_pool2d_with_indices(x, *window, module.ceil_mode)
    backward = torch.ops.aten.max_pool2d_with_indices_backward
    g_x: Tensor = backward(g.to(x.dtype), x, *window, module.ceil_mode, indices)
    return g_x


def _global_mean(
    module: nn.Module, x: Tensor, g: Tensor, gradients: Gradients, need_input: bool
) -> Tensor | None:
    del module, gradients
    if not need_input:
        return None
    share = g * (1.0 / (x.shape[-1] * x.shape[-2]))
    return share[..., None, None].expand(x.shape)


def _attention(
    module: nn.Module, x: Tensor, g: Tensor, gradients: Gradients, need_input: bool
) -> Tensor | None:
    del gradients
    assert isinstance(module, SpikeAttention)
    return module.vjp(x, g) if need_input else None


def _twice(
    module: nn.Module, x: Tensor, g: Tensor, gradients: Gradients, need_input: bool
) -> Tensor | None:
    del module, gradients
    return g[:, : x.shape[1]] + g[:, x.shape[1] :] if need_input else None


def _voting(
    module: nn.Module, x: Tensor, g: Tensor, gradients: Gradients, need_input: bool
) -> Tensor | None:
    del x, gradients
    assert isinstance(module, Voting)
    return (g * (1.0 / module.group)).repeat_interleave(module.group, 1) if need_input else None


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
        inputs.append(module_forward(part, inputs[-1]))
    current: Tensor | None = g
    for part in reversed(parts):
        if current is None:
            return None
        part_input = inputs.pop()
        needed = need_input or bool(inputs)
        current = module_backward(part, part_input, current, gradients, need_input=needed)
    return current


def _pair(value: int | tuple[int, ...]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


# Without a backward of their own, but each sample depends on that sample alone, without chance: cut into chunks, too.
_SAMPLE_WISE = (
    nn.Conv1d, nn.Conv3d, nn.ConvTranspose2d, nn.AvgPool1d, nn.MaxPool1d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d, nn.GroupNorm, nn.LayerNorm, nn.ReLU, nn.GELU, nn.SiLU,
)  # fmt: skip
_BACKWARD: dict[type, _Backward] = {
    nn.Conv2d: _conv2d,
    nn.Linear: _linear,
    nn.AvgPool2d: _avg_pool,
    nn.MaxPool2d: _max_pool,
    nn.Flatten: _flatten,
    nn.Sequential: _sequence,
    GlobalMean: _global_mean,
    SpikeAttention: _attention,
    Twice: _twice,
    Voting: _voting,
}
