"""A finished training, read from its folder: what it says of itself, its network and its recordings."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from revedge.errors import CheckpointError, ExportError, UsageError
from revedge.user_code import require_unchanged

if TYPE_CHECKING:
    from revedge.data import FrameCache
    from revedge.models import SpikingNet
    from revedge.models.user_net import UserNet


def require_trained(path: Path) -> None:
    """Refuse a folder that holds no finished training.

    Raises:
        UsageError: it is not there, or its training has not ended.
    """
    if not path.is_dir():
        raise UsageError(f"RUN {path} does not exist; name the --out folder of revedge train")
    if not (path / "model.json").is_file() or not (path / "model.safetensors").is_file():
        raise UsageError(
            f"RUN {path} holds no finished training (no model.json and model.safetensors); end it with: "
            f"revedge train --resume {path}"
        )


def read_description(folder: Path) -> dict[str, Any]:
    """Return what model.json of a finished training says.

    Raises:
        CheckpointError: it is damaged, or of another version.
    """
    path = folder / "model.json"
    try:
        value = json.loads(path.read_text())
        version = value["version"]
        readable = value["format"] == "revedge-model" and (version != 1 or _is_complete(value))
    except (ValueError, KeyError, TypeError, OSError):
        readable, version, value = False, None, {}
    if not readable:
        raise CheckpointError(f"{path} is damaged; train again, or copy the run again")
    if version != 1:
        raise CheckpointError(
            f"{path} is of model version {version!r}, this revedge reads 1; train again"
        )
    return dict(value)


def _is_complete(value: dict[str, Any]) -> bool:
    return (
        all(isinstance(value[part]["name"], str) for part in ("config", "data"))
        and isinstance(value["data"]["timesteps"], int)
        and isinstance(value["size_bytes"], int)
        and isinstance(value["sha256"], str)
    )


def load_network(folder: Path, description: dict[str, Any]) -> "SpikingNet":
    """Return the trained network, in eval mode; a module of the user's as one that can be taken step by step.

    Raises:
        CheckpointError: its files do not fit together, or describe what this revedge cannot build.
        ExportError: something in a user's module has no counterpart; names the layer.
        UsageError: code of the user's has changed since.
    """
    from revedge import models
    from revedge.devices.tensor_file import check_file, read_tensors
    from revedge.models.user_net import UserNet

    path = folder / "model.safetensors"
    require_unchanged(description["config"]["name"], description.get("code_sha256"))
    check_file(path, description["size_bytes"], description["sha256"])
    try:
        net = models.create(**description["config"])
    except TypeError:
        raise CheckpointError(
            f"{folder / 'model.json'} describes a network that this revedge cannot build"
        ) from None
    if description.get("numerics") == "exact":
        from revedge.models.folded import fold_network

        net = fold_network(net)
    read_tensors(path, net.state_dict())
    return _as_runs(net).eval() if isinstance(net, UserNet) else net.eval()


def _as_runs(net: "UserNet") -> "SpikingNet":
    """Return a module of the user's as a network that can be taken step by step.

    Raises:
        ExportError: something in it has no counterpart; names the layer.
    """
    from revedge.export import import_module

    sizes: Any = {"in_shape": net.in_shape, "timesteps": net.timesteps, "static": net.static}
    try:
        made = import_module(net.plain(), **sizes)
    except ExportError as reason:
        raise ExportError(f"model {net.config['name']!r} cannot be exported: {reason}") from None
    made.config = net.config
    return made


def open_frames(folder: Path, description: dict[str, Any], data_dir: Path | None) -> "FrameCache":
    """Return the recordings that it was trained with, from ``data_dir`` if they have moved.

    Raises:
        DataError, UsageError: they are not there.
    """
    from revedge.data import FrameCache, prepare
    from revedge.planner.plan import Plan

    plan = folder / "plan.toml"
    if data_dir is None and plan.is_file():
        saved = Plan.load(plan).data_dir
        data_dir = None if saved is None else Path(saved)
    data = description["data"]
    return FrameCache.open(prepare(data["name"], data_dir, data["timesteps"]))
