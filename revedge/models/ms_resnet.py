"""MS-ResNet: residual nets with membrane shortcuts (baseline of arXiv 2312.07922; 18, 34 as published)."""

from typing import Any

from torch import nn

from revedge.engine import Branch, Feed, Residual, Run, Unit
from revedge.models.net import SpikingNet
from revedge.models.parts import MakeNeuron, basic_branch, check_size, conv, head, stem


def build(
    *,
    in_shape: tuple[int, int, int],
    num_classes: int,
    timesteps: int,
    static: bool,
    neuron: MakeNeuron,
    widths: list[int],
    blocks: list[int],
    dvs_stem: bool,
    config: dict[str, Any],
) -> SpikingNet:
    """Stem, stages of pre-activation blocks, head. Where size or width changes, the skip is neuron-conv1x1-BN.

    Args:
        in_shape: (C, H, W).
        num_classes: number of classes.
        timesteps: T.
        static: images instead of event frames.
        neuron: makes one neuron.
        widths: channels per stage.
        blocks: blocks per stage, the one that halves included.
        dvs_stem: stride 2 and MaxPool 3 s2 p1 in the stem, for frames of 128x128.
        config: what `revedge.models.create` was called with.
    """
    check_size(in_shape, len(widths) - 1 + 2 * dvs_stem, config["name"])
    body: list[Run] = []
    for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        if stage:
            body.append(_entry(neuron, widths[stage - 1], width))
        identity = count - (stage > 0)
        if identity:
            body.append(
                Residual(
                    [basic_branch(neuron, width, width) for _ in range(identity)], on_grid=True
                )
            )
    return SpikingNet(
        stem=stem(in_shape[0], widths[0], dvs_pool=nn.MaxPool2d(3, 2, 1) if dvs_stem else None),
        body=body,
        head=head(neuron, widths[-1], num_classes),
        in_shape=in_shape,
        num_classes=num_classes,
        timesteps=timesteps,
        static=static,
        config=config,
    )


def _entry(neuron: MakeNeuron, c_in: int, c_out: int) -> Feed:
    """The first block of a stage: no identity path, so both its branches are fed."""
    skip = Branch([Unit(neuron=neuron(), op=conv(c_in, c_out, 1, 2))], norm=nn.BatchNorm2d(c_out))
    return Feed([skip, basic_branch(neuron, c_in, c_out, 2)])
