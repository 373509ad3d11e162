"""What benchmarks of exported files run on: members of the registry whose neurons fire, frames, written files."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from revedge import models
from revedge.errors import UsageError
from revedge.export.exact_form import exact_form
from revedge.export.formats import Choices
from revedge.export.inference import inference_form
from revedge.export.manifest import Manifest
from revedge.export.onnx_file import check_onnx, write_onnx
from revedge.export.writer import exact_manifest, manifest_of
from revedge.models import SpikingNet

STEPS = 16
_EVENT = 0.5  # what a frame holds for one


class Frames:
    """What a manifest asks of a data set."""

    scale = 1.0
    class_names = tuple(str(k) for k in range(10))
    test_indices = np.arange(4)

    def batch(self, indices: Any) -> Any:
        """Never called here: inputs are made by `events`."""
        raise NotImplementedError


def lively(name: str, **options: Any) -> SpikingNet:
    """Return a network whose normalizations have gathered statistics, so that neurons of every layer fire."""
    torch.manual_seed(1)
    net = models.create(name, num_classes=10, timesteps=STEPS, **options)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 1.5, 2.5)
            nn.init.uniform_(module.bias, -0.2, 0.8)
    with torch.no_grad():
        for seed in range(6):
            net.train()(torch.from_numpy(events(4, 4, seed, net.in_shape)))
    return net.eval()


def events(steps: int, batch: int, seed: int, shape: tuple[int, ...]) -> Any:
    """Return event counts ``[steps, batch, C, H, W]``, a third of them not 0."""
    counts = np.random.default_rng(seed).poisson(0.4, (steps, batch, *shape))
    return counts.astype(np.float32) * np.float32(_EVENT)


def written(
    net: SpikingNet, kind: str, folder: Path, *, exact: bool = False, **chosen: Any
) -> tuple[Any, Manifest, Path]:
    """Write one ONNX file, in float or in exact numerics, read it back and return it."""
    manifest = manifest_of(net, Frames(), "", kind, Choices(**chosen))
    path = folder / f"{kind}{'.exact' if exact else ''}.onnx"
    form = inference_form(net)
    if exact:
        found = exact_form(net, _EVENT)
        form, manifest = found.net, exact_manifest(manifest, found.certificate)
    write_onnx(form, manifest, path)
    return check_onnx(path, manifest), manifest, path


def full_width(name: str) -> SpikingNet:
    """Return a member of the registry at its own width, on the smallest frames of these that it takes."""
    for side in (32, 64):
        try:
            return lively(name, in_shape=(2, side, side))
        except UsageError:
            continue
    return lively(name, in_shape=(2, 128, 128))
