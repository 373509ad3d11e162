"""Straight-through training on a grid: the optimizer moves latent weights, the network holds their snapped values.

Forward and backward see the network that will be deployed. The gradient at the snapped weights is taken for that of the
latent ones (straight-through estimator: Bengio et al., arXiv 1308.3432; for weights: Courbariaux et al., 1511.00363).
"""

import torch
from torch import Tensor, nn

from revedge.devices.optimizer import Optimizer, create
from revedge.models import SpikingNet
from revedge.models.snapping import SnapLayer, snap, snap_layers


class SnappingOptimizer(Optimizer):
    """An optimizer of `revedge.devices.optimizer` over latent copies of a folded network's weights.

    Args:
        name: "adamw" or "sgd".
        net: from `revedge.models.folded.fold_network`, with the weights to begin from; they are snapped at once.
        input_scale: what 8-bit frames are multiplied with.
        weight_decay: as everywhere.

    Memory: one copy of the weights beside the optimizer's own state.
    """

    def __init__(
        self, name: str, net: SpikingNet, input_scale: float, *, weight_decay: float
    ) -> None:
        super().__init__([])
        self._layers = snap_layers(net, input_scale)
        self._latent: dict[str, nn.Parameter] = {}
        self._latent_of: dict[Tensor, nn.Parameter] = {}
        for layer in self._layers:
            for part, parameter in _parameters(layer).items():
                latent = nn.Parameter(parameter.detach().clone())
                self._latent[f"{layer.path}.{part}"] = self._latent_of[parameter] = latent
        self._inner = create(name, self._latent.items(), weight_decay=weight_decay)
        self._snap()

    def state_tensors(self) -> dict[str, Tensor]:
        """Return the live state: the latent weights too."""
        latent = {f"latent.{name}": value.detach() for name, value in self._latent.items()}
        return {**self._inner.state_tensors(), **latent}

    def zero_grad(self) -> None:
        """Free all gradients."""
        self._inner.zero_grad()
        for layer in self._layers:
            for parameter in _parameters(layer).values():
                parameter.grad = None

    def step(self, learning_rate: float) -> None:
        """Move the latent weights, then snap them into the network."""
        for layer in self._layers:
            for part, parameter in _parameters(layer).items():
                self._latent[f"{layer.path}.{part}"].grad = parameter.grad
        self._inner.step(learning_rate)
        self._snap()

    def update_now(self, parameter: nn.Parameter, gradient: Tensor, learning_rate: float) -> None:
        """Move a latent weight at once; the network sees it at the end of the step, when `step` snaps all of them."""
        self._inner.update_now(self._latent_of[parameter], gradient, learning_rate)

    def _snap(self) -> None:
        with torch.no_grad():
            for layer in self._layers:
                snap(
                    layer,
                    self._latent[f"{layer.path}.weight"],
                    self._latent[f"{layer.path}.bias"],
                )


def _parameters(layer: SnapLayer) -> dict[str, Tensor]:
    return {"weight": layer.weight, "bias": layer.bias}
