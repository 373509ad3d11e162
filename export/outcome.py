"""What became of the formats of one export: files that passed, files that were rejected, the report."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from revedge.errors import ExportError
from revedge.export.golden_check import GoldenReport
from revedge.export.manifest import Manifest
from revedge.export.parity import ParityReport

REPORT_FILE = "model.export.json"


@dataclasses.dataclass(slots=True)
class ExportedFile:
    """One format: its files, and what was found.

    Attributes:
        format: of `revedge.export.formats.FORMATS`.
        paths: of the files.
        manifest: of the files.
        parity: the comparison with the network.
        golden: the check that will be made on the target, made here; None for TorchScript.
        measured: file name -> bytes, time and memory, see `revedge.export.measure.measure`.
    """

    format: str
    paths: tuple[Path, ...]
    manifest: Manifest
    parity: ParityReport
    golden: GoldenReport | None = None
    measured: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)


class RejectedError(ExportError):
    """Some of several formats came to nothing.

    Attributes:
        failures: why.
        done: the others, which passed.
    """

    def __init__(self, failures: Sequence[ExportError], done: list[ExportedFile]) -> None:
        more = f"; {len(failures) - 1} more failed, see {REPORT_FILE}" if failures[1:] else ""
        super().__init__(f"{failures[0]}{more}")
        self.failures = failures
        self.done = done


def identity(path: Path) -> tuple[int, ...] | None:
    """What another file under this name would not share; None where there is none."""
    try:
        told = path.stat()
    except FileNotFoundError:
        return None
    return told.st_dev, told.st_ino, told.st_size, told.st_mtime_ns


def reject(error: ExportError, written: Sequence[Path]) -> ExportError:
    """Rename what was written; a file of an export before this one is none of it."""
    kept = [path.rename(path.with_name(path.name + ".rejected")).name for path in written]
    return ExportError(f"{error}; kept as {', '.join(kept)}" if kept else str(error))


def write_report(path: Path, done: list[ExportedFile], failures: list[ExportError]) -> None:
    """Write what became of every format as JSON."""
    report = {
        "files": {file.format: [one.name for one in file.paths] for file in done},
        "parity": {file.format: dataclasses.asdict(file.parity) for file in done},
        "golden": {f.format: dataclasses.asdict(f.golden) for f in done if f.golden},
        "measured": {file.format: file.measured for file in done},
        "errors": [str(error) for error in failures],
    }
    path.write_text(json.dumps(report, indent=1) + "\n")
