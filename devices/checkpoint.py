"""Checkpoints that survive kill -9, a full disk and a flipped bit, and can run no code.

A checkpoint is `step-00000042.safetensors` (weights, statistics, optimizer) and `step-00000042.json` (position, SHA-256
of both, identity of the training). The JSON is written last: a checkpoint exists if its JSON does. The newest two are
kept, the older one as the answer to damage of the newer.
"""

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from revedge.devices.atomic import replace_text
from revedge.devices.tensor_file import check_file, read_tensors, write_tensors
from revedge.errors import CheckpointError

VERSION = 1
_KEPT = 2


@dataclass
class Loaded:
    """What `CheckpointStore.load` found: the newest good state, and what was wrong with newer ones."""

    state: dict[str, Any] | None = None
    problems: list[str] = field(default_factory=list)


def training_identity(settings: Mapping[str, Any]) -> str:
    """Return a name for a training: SHA-256 over everything that its numbers depend on."""
    return hashlib.sha256(_canonical(dict(settings)).encode()).hexdigest()


class CheckpointStore:
    """The checkpoints of one training, in one folder.

    Args:
        folder: made if it is not there.
        identity: of the training (`training_identity`); checkpoints of another are refused.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder = folder
        self.identity = identity
        folder.mkdir(parents=True, exist_ok=True)

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
        """Write the checkpoint of `step`, then remove the ones no longer needed.

        Args:
            step: steps done.
            tensors: everything to restore; read from their own memory, no copy.
            state: JSON-able position (epoch, sums, ...).

        Raises:
            OSError: it could not be written; every older checkpoint is still there.
        """
        path = self.folder / f"step-{step:08d}.safetensors"
        size_bytes, digest = write_tensors(path, tensors)
        record = {
            "version": VERSION,
            "identity": self.identity,
            "step": step,
            "size_bytes": size_bytes,
            "sha256": digest,
            "state": dict(state),
        }
        record["record_sha256"] = hashlib.sha256(_canonical(record).encode()).hexdigest()
        replace_text(path.with_suffix(".json"), json.dumps(record, indent=1) + "\n")
        self._remove_old(step)
        return path

    def load(self, into: Mapping[str, Tensor]) -> Loaded:
        """Read the newest good checkpoint into tensors that exist; state None if there is none at all.

        Raises:
            CheckpointError: there are checkpoints, but none is good, or they are of another training or version.
        """
        found = Loaded()
        records = self._records()
        for record_path in records:
            try:
                record = self._read_record(record_path)
                path = record_path.with_suffix(".safetensors")
                check_file(path, record["size_bytes"], record["sha256"])
                read_tensors(path, into)
            except CheckpointError as error:
                found.problems.append(str(error))
                continue
            found.state = {**record["state"], "step": record["step"]}
            return found
        if records:
            raise CheckpointError(
                f"no checkpoint in {self.folder} can be used: {found.problems[0]}; "
                "remove that folder to train from the start, or train into another --out"
            )
        return found

    def _records(self) -> list[Path]:
        """Return the JSON files, newest first."""
        return sorted(self.folder.glob("step-*.json"), reverse=True)

    def _read_record(self, path: Path) -> dict[str, Any]:
        try:
            record = json.loads(path.read_bytes())
        except OSError as error:
            raise CheckpointError(f"{path.name} cannot be read ({error.strerror})") from None
        except ValueError:
            raise CheckpointError(f"{path.name} is truncated or damaged") from None
        if not isinstance(record, dict):
            raise CheckpointError(f"{path.name} is damaged (no JSON object)")
        if record.get("version") != VERSION:
            raise CheckpointError(
                f"{path.name} is of checkpoint version {record.get('version')!r}, this revedge reads {VERSION}"
            )
        digest = record.pop("record_sha256", None)
        if digest != hashlib.sha256(_canonical(record).encode()).hexdigest():
            raise CheckpointError(f"{path.name} is damaged (its SHA-256 is not the one written)")
        if record["identity"] != self.identity:
            raise CheckpointError(f"{path.name} belongs to another training")
        return record

    def _remove_old(self, newest_step: int) -> None:
        """Keep the newest two, and no temporary or orphaned file."""
        names = [path.stem for path in self._records() if int(path.stem[5:]) <= newest_step]
        kept = set(names[:_KEPT])
        # Records first: tensors without a record are no checkpoint, a record without tensors would be a damaged one.
        for pattern in ("step-*.json", "step-*.safetensors", ".step-*.tmp"):
            for path in self.folder.glob(pattern):
                if path.stem not in kept:
                    with contextlib.suppress(OSError):
                        path.unlink()


def _canonical(value: dict[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
