"""Backward passes that leave no graph, and say so instead of giving out a gradient that nothing flows through."""

import functools
from collections.abc import Callable
from typing import Any

import torch

from revedge.errors import UsageError


def first_derivative_only(what: str, instead: str) -> Callable[..., Any]:
    """Decorate the ``backward`` of an autograd function that computes without a graph.

    Autograd's own ``once_differentiable`` notices a second derivative only where the gradient of the output has a
    graph. Behind a linear loss it has none: a penalty on the gradient would be a constant, and train nothing.

    Args:
        what: whose backward pass it is, for the error.
        instead: what to do, for the error.

    Raises:
        UsageError: in a backward pass under ``create_graph=True``, the only one in which gradients are enabled.
    """

    def decorate(backward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(backward)
        def checked(ctx: Any, *grads: Any) -> Any:
            if torch.is_grad_enabled():
                raise UsageError(
                    f"create_graph=True asks for second derivatives, but the backward pass of {what} leaves no graph; "
                    f"{instead}, or leave create_graph out"
                )
            return backward(ctx, *grads)

        return checked

    return decorate
