"""What compiled code asks of the shapes of its tensors, in C and in Triton."""

from collections.abc import Sequence

from torch import Tensor


def check_shape(name: str, tensor: Tensor | None, shape: Sequence[int]) -> None:
    """Raise ValueError unless ``tensor`` is None or of ``shape``."""
    if tensor is not None and tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, needs {tuple(shape)}")


def check_slab(name: str, whole: Tensor, y: Tensor, dim: int, first: int) -> int:
    """Check that the channels of ``y``, along ``dim``, fit into ``whole``; return how many it has."""
    shape = list(y.shape)
    shape[dim] = whole.shape[dim]
    check_shape(name, whole, shape)
    check_range(name, whole.shape[dim], y.shape[dim], first)
    return whole.shape[dim]


def check_range(name: str, channels: int, count: int, first: int) -> None:
    """Raise ValueError unless ``count`` channels from ``first`` on are among ``channels``."""
    if first < 0 or first + count > channels:
        raise ValueError(f"{name} has {channels} channels, not {count} from {first} on")
