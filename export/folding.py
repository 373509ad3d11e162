"""Batch normalization with running statistics as part of the operator before it.

``norm(W x + b) = (scale * W) x + (scale * b + shift)`` per output channel. The products are taken in float64 and
rounded once, so a folded weight is within half a unit in the last place of the true product.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from revedge.errors import ExportError

_FOLDABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)  # output channel first in the weight


def can_fold(op: nn.Module, norm: _BatchNorm) -> bool:
    """Whether ``norm``, applied to the output of ``op``, can become part of ``op``."""
    if type(op) not in _FOLDABLE:
        return False
    weight = op.weight
    return isinstance(weight, Tensor) and weight.shape[0] == norm.num_features


def fold(op: nn.Module, norm: _BatchNorm) -> nn.Module:
    """Return a new operator that computes ``norm(op(x))``; neither argument is changed."""
    folded = copy.deepcopy(op)
    assert isinstance(folded, _FOLDABLE)
    scale, shift = _affine_float64(norm)
    weight = folded.weight.detach().double()
    bias = torch.zeros_like(shift) if folded.bias is None else folded.bias.detach().double()
    per_output = scale.reshape([-1] + [1] * (weight.dim() - 1))
    dtype = folded.weight.dtype
    folded.weight = nn.Parameter((weight * per_output).to(dtype), requires_grad=False)
    folded.bias = nn.Parameter((bias * scale + shift).to(dtype), requires_grad=False)
    return folded


def norm_affine_of(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Return (scale, shift) ``[C]`` in float32 for a normalization that stays, as the kernels compute them."""
    from revedge.kernels import norm_affine

    mean, var = _running(norm)
    scale, shift, _ = norm_affine(mean, var, norm.weight, norm.bias, norm.eps)
    return scale.detach().clone(), shift.detach().clone()


def _affine_float64(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    mean, var = _running(norm)
    scale = 1.0 / torch.sqrt(var.double() + norm.eps)
    if norm.weight is not None:
        scale = norm.weight.detach().double() * scale
    shift = -mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach().double()
    return scale, shift


def _running(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    if norm.running_mean is None or norm.running_var is None:
        raise ExportError(
            "a batch normalization without running statistics cannot be exported, its output depends on the batch; "
            "build it with track_running_stats=True"
        )
    return norm.running_mean, norm.running_var
