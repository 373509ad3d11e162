"""What a training process does in memory, on any device: the same code is traced on meta and
measured on the CPU.

It mirrors the budgeted training loop: frames come as uint8, become float32, go through the network;
the gradient is accumulated over micro-batches; fused AdamW or SGD updates in place; evaluation runs
without gradients.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from revedge import models
from revedge.engine import update_in_backward
from revedge.engine.autocast import computing_in
from revedge.models.net import SpikingNet
from revedge.planner.setting import Setting

Watch = Callable[[list[Tensor], str], None]
_SLOTS = {"adamw": 2, "sgd": 1}


def _ignore(tensors: list[Tensor], kind: str) -> None:
    del tensors, kind


def network(setting: Setting, device: str) -> SpikingNet:
    """Return the network of ``setting``, under its strategy."""
    with torch.device(device):
        return models.create(
            setting.model,
            in_shape=setting.in_shape,
            num_classes=setting.num_classes,
            timesteps=setting.timesteps,
            static=setting.static,
            strategy=setting.strategy,
            **setting.model_options,
        )


class Rehearsal:
    """A network, its optimizer state and its data buffers, for ``setting``, on ``device``.

    Args:
        setting: the configuration.
        device: "meta", or where it is run.
        net: made for the same model, options, frames and T before; None: it is made.
    """

    def __init__(self, setting: Setting, device: str, net: SpikingNet | None = None) -> None:
        self.setting, self.device = setting, device
        self.net = network(setting, device) if net is None else net
        self.net.set_strategy(setting.strategy)
        self.net.take_sizes(setting)
        self._dtype: torch.dtype = getattr(torch, setting.precision)
        self.parameters = [p for p in self.net.parameters() if p.requires_grad]
        self._place = {p: place for place, p in enumerate(self.parameters)}
        self.slots = [
            [torch.zeros_like(p) for p in self.parameters] for _ in range(_SLOTS[setting.optimizer])
        ]
        counted = self.parameters if setting.optimizer == "adamw" else []
        self.step_counts = [torch.zeros((), device=device) for _ in counted]

    def weights(self) -> list[Tensor]:
        """Return parameters and buffers."""
        return [*self.net.parameters(), *self.net.buffers()]

    def optimizer_state(self) -> list[Tensor]:
        """Return the optimizer's tensors."""
        return [each for slot in self.slots for each in slot] + self.step_counts

    def warm_up(self) -> None:
        """Forward and backward of at most two samples, without an update, as the trainer does before its fence."""
        self.net.train()
        if self.setting.update_in_backward:
            update_in_backward(self.net, lambda p, g: None)
        x, labels = self._batch(_ignore, min(2, self.setting.micro_batch_size))
        functional.cross_entropy(self._logits(x), labels).backward()
        for parameter in self.parameters:
            parameter.grad = None
        if self._dtype != torch.float32:  # evaluation needs other code than training
            with torch.no_grad():
                self.net.eval()
                self.net(x)

    def train_step(self, watch: Watch = _ignore) -> None:
        """Forward and backward of every micro-batch (two stand for any number), then the update."""
        setting = self.setting
        self.net.train()
        if setting.update_in_backward:
            update_in_backward(self.net, lambda p, g: self._update_now(p, g, watch))
        rounds = 1 if setting.micro_batch_size == setting.batch_size else 2
        for _ in range(rounds):
            x, labels = self._batch(watch)
            logits = self._logits(x)
            del x
            loss = functional.cross_entropy(logits, labels, label_smoothing=0.1) / rounds
            loss.backward()
            watch([p.grad for p in self.parameters if p.grad is not None], "gradients")
            del labels, logits, loss
        self._update([(i, p.grad) for i, p in enumerate(self.parameters) if p.grad is not None])
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def evaluate(self, watch: Watch = _ignore) -> None:
        """One batch of the evaluation, of the size of a micro-batch."""
        self.net.eval()
        x, labels = self._batch(watch)
        _ = (self.net(x).argmax(1) == labels).sum()

    def _logits(self, x: Tensor) -> Tensor:
        """As in training; evaluation computes in float32."""
        with computing_in(self._dtype, self.device):
            logits: Tensor = self.net(x)
        return logits

    def _batch(self, watch: Watch, samples: int | None = None) -> tuple[Tensor, Tensor]:
        setting, samples = self.setting, samples or self.setting.micro_batch_size
        steps = [] if setting.static else [setting.timesteps]
        shape = (*steps, samples, *setting.in_shape)
        raw = torch.ones(shape, dtype=torch.uint8, device=self.device)
        labels = torch.zeros(samples, dtype=torch.int64, device=self.device)
        x = raw.to(torch.float32)
        if self.device != "meta":
            x.bernoulli_(0.2)
        watch([raw, labels, x], "data")
        return x, labels

    def _update_now(self, parameter: nn.Parameter, gradient: Tensor, watch: Watch) -> None:
        watch([gradient], "gradients")
        self._update([(self._place[parameter], gradient)])

    @torch.no_grad()
    def _update(self, found: list[tuple[int, Tensor]]) -> None:
        if self.device == "meta" or not found:  # in place, without temporaries
            return
        chosen, gradients = [i for i, _ in found], [g for _, g in found]
        weights = [self.parameters[i].detach() for i in chosen]
        slots = [[slot[i] for i in chosen] for slot in self.slots]
        # Weights that random frames have trained may leave the range of the grid, so nothing is learned.
        common: dict[str, Any] = {"lr": 0.0, "weight_decay": 0.01, "maximize": False}
        if self.setting.optimizer == "sgd":
            torch._fused_sgd_(
                weights, gradients, slots[0], **common,
                momentum=0.9, dampening=0.0, nesterov=False, is_first_step=False,
            )  # fmt: skip
            return
        counts = [self.step_counts[i] for i in chosen]
        torch._foreach_add_(counts, 1.0)
        torch._fused_adamw_(
            weights, gradients, slots[0], slots[1], list[Tensor](), counts, **common,
            beta1=0.9, beta2=0.999, eps=1e-8, amsgrad=False,
        )  # fmt: skip
