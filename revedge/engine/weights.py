"""The weights of a forward pass, found again in its backward pass.

Autograd saves what a backward pass reads, and notices if it has been written over since. A run reads its modules again
instead, so it looks by itself: weights that were written over are an error, and tensors that stand elsewhere by now
(`torch.func.functional_call` puts others in for one call) are put back for as long as the backward pass takes.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from revedge.errors import ReversibilityError


class Weights:
    """Parameters of modules as they are now: which tensors, and how often each has been written to.

    Args:
        modules: may be the same one several times.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        held = {id(module._parameters): module for module in modules if module._parameters}
        self._held = [
            (module, name, tensor, _version(tensor))
            for module in held.values()
            for name, tensor in module._parameters.items()
            if tensor is not None
        ]

    @contextmanager
    def as_they_were(self) -> Iterator[None]:
        """Inside, modules hold the tensors that they held then.

        Raises:
            ReversibilityError: one has been written to since.
        """
        for module, name, tensor, version in self._held:
            if _version(tensor) != version:
                raise ReversibilityError(
                    f"the {name} {tuple(tensor.shape)} of a {type(module).__name__} was written over between forward "
                    "and backward, so no gradient can be had of what the forward pass computed; change weights "
                    "(optimizer.step, load_state_dict) after backward, or run the forward pass again"
                )
        others: list[tuple[dict[str, Tensor | None], str, Tensor | None]] = []
        for module, name, tensor, _ in self._held:
            table: dict[str, Tensor | None] = module._parameters  # type: ignore[assignment]
            if table.get(name) is not tensor:
                others.append((table, name, table.get(name)))
                table[name] = tensor
        try:
            yield
        finally:
            for table, name, other in others:
                table[name] = other


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
