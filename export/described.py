"""The metadata of a file of a network."""

import dataclasses
import json
from importlib import metadata

from revedge.engine.unit import GRID_BITS
from revedge.errors import UsageError
from revedge.export.exact_ranges import Certificate
from revedge.export.formats import GRAPH_OF, Choices, check_format
from revedge.export.golden import network_sha256
from revedge.export.manifest import Manifest, StateEntry
from revedge.export.predictions import Frames
from revedge.models import SpikingNet


def manifest_of(
    net: SpikingNet,
    frames: Frames,
    data_name: str,
    format_name: str = "onnx",
    choices: Choices | None = None,
) -> Manifest:
    """Return the metadata of a file of ``net``.

    Raises:
        UsageError: a format, or a number of steps, that ``net`` does not have.
    """
    check_format(format_name)
    chosen = choices or Choices()
    onnx = format_name in GRAPH_OF
    graph = GRAPH_OF.get(format_name, "step")
    if net.static and graph == "blocks":
        raise UsageError(
            "--format onnx-blocks is for recordings, this network looks at one image; use onnx-scan"
        )
    if net.static and chosen.steps not in (None, net.timesteps):
        raise UsageError(
            f"{chosen.steps} unrolled steps; this network looks at an image for {net.timesteps}"
        )
    steps = (chosen.steps or net.timesteps) if graph == "unrolled" else None
    if graph == "scan" and net.static:
        steps = net.timesteps
    states = tuple(
        StateEntry(
            name=f"state_{i}",
            next=f"next_state_{i}",
            shape=tuple(spec.shape),
            init=spec.init,
            path=spec.name,
        )
        for i, spec in enumerate(net.state_spec())
    )
    packages = {"revedge": "revedge", "torch": "torch"} | ({"onnx": "onnx"} if onnx else {})
    return Manifest(
        graph=graph,
        in_shape=tuple(net.in_shape),
        input_scale=float(frames.scale),
        static=net.static,
        timesteps=net.timesteps,
        num_classes=net.num_classes,
        class_names=tuple(frames.class_names),
        states=states,
        grid_bits=GRID_BITS,
        model=json.loads(json.dumps(net.config)),
        versions={key: _version(package) for key, package in packages.items()},
        data=data_name,
        network=network_sha256(net),
        opset=chosen.opset if onnx else None,
        batch=chosen.batch if onnx else None,
        steps=steps,
        target=chosen.target if onnx else "torch",
        weights=chosen.weights if onnx else "float32",
    )


def exact_manifest(manifest: Manifest, certificate: Certificate) -> Manifest:
    """Return the metadata of an exact file."""
    return dataclasses.replace(
        manifest,
        numerics="exact",
        certificate=certificate.to_dict(),
        grid_bits=certificate.stream_bits,
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"
