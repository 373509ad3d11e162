"""What is known about a board, each number with its source.

A board is one TOML file in ``boards/``; boards that differ only in RAM share a file and name their
``[variants]``. A file says what was sold; what is really there is read by revedge.devices.probe.
"""

import difflib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from revedge.errors import DeviceError, UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FORMAT_VERSION = 1
_FOLDER = Path(__file__).parent / "boards"
_KINDS = ("jetson", "raspberry-pi", "generic")
_HEAD = {"version": int, "title": str, "kind": str, "unified_memory": bool}
_FACTS: Mapping[str, type | tuple[type, ...]] = {
    "ram_bytes": int,
    "mem_total_bytes": int,
    "mem_available_bytes": int,
    "bandwidth_bytes_per_s": int,
    "sm_count": int,
    "cuda_cores": int,
    "compute_capability": str,
    "cuda_context_bytes": int,
    "gpu_precisions": list,
    "cpu_precisions": list,
    "cpu": str,
    "cpu_cores": int,
    "power_modes_w": list,
    "page_size_bytes": int,
}

# What a file may leave out, where nobody knows it.
_SELDOM_KNOWN = ("mem_available_bytes", "cuda_context_bytes")
_UNKNOWN = {
    "value": "unknown",
    "source": "no report found; read it with: revedge devices probe",
    "verified": False,
}

Value = int | str | tuple[float, ...] | tuple[str, ...] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Fact:
    """One number (None: unknown), where it stands, and whether somebody looked it up there."""

    value: Value
    source: str
    verified: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Board:
    """One board; None stands for what is not known.

    ``ram_bytes`` is the size of the chips; ``mem_total_bytes``, Linux's MemTotal, is less; ``mem_available_bytes`` is
    MemAvailable beside a system without a desktop.
    ``unified_memory``: CPU and GPU share the RAM, so a byte of CUDA is a byte less for everyone.
    """

    name: str
    title: str
    kind: str
    unified_memory: bool
    ram_bytes: int | None
    mem_total_bytes: int | None
    mem_available_bytes: int | None
    bandwidth_bytes_per_s: int | None
    sm_count: int | None
    cuda_cores: int | None
    compute_capability: str | None
    cuda_context_bytes: int | None  # that driver and libraries take of the RAM
    gpu_precisions: tuple[str, ...] | None  # that it computes in by instructions of its own
    cpu_precisions: tuple[str, ...] | None
    cpu: str | None
    cpu_cores: int | None
    power_modes_w: tuple[float, ...] | None
    page_size_bytes: int | None
    facts: Mapping[str, Fact]

    @property
    def largest_budget_bytes(self) -> int | None:
        """Return the RAM that no budget can exceed: MemTotal where it is known, else the chips'."""
        return self.ram_bytes if self.mem_total_bytes is None else self.mem_total_bytes

    def to_dict(self) -> dict[str, Any]:
        """Return the board as ``revedge devices show --json`` prints it; units are in the keys."""
        values = {key: fact.value for key, fact in self.facts.items()}
        sources = {
            key: {"source": fact.source, "verified": fact.verified}
            for key, fact in self.facts.items()
        }
        return {
            "name": self.name,
            "title": self.title,
            "kind": self.kind,
            "unified_memory": self.unified_memory,
            **values,
            "sources": sources,
        }


def names() -> list[str]:
    """Return the names of all boards that come with revedge, sorted."""
    return sorted(_files())


def load(name: str) -> Board:
    """Return the board called ``name``, or, if that ends in ``.toml``, the one in that file.

    Raises:
        UsageError: there is no such board or file; the message names close ones.
        DeviceError: the file is damaged.
    """
    if name.endswith(".toml"):
        path, variant = Path(name), None
        if not path.is_file():
            raise UsageError(
                f"board file {name} does not exist; list the boards with: revedge devices list"
            )
        return _read(path, path.stem, variant)
    files = _files()
    if name not in files:
        raise UsageError(f"board {name!r} is not known; {_hint(name, sorted(files))}")
    path = files[name]
    return _read(path, name, None if path.stem == name else name)


def _files() -> dict[str, Path]:
    """Return every board name and the file that holds it."""
    found: dict[str, Path] = {}
    for path in sorted(_FOLDER.glob("*.toml")):
        variants = _parse(path).get("variants")
        found.update(dict.fromkeys(variants or [path.stem], path))
    return found


def _hint(name: str, known: list[str]) -> str:
    words = name.lower().replace("_", "-").replace(" ", "-")
    close = [one for one in known if words in one][:4] if words else []
    close = close or difflib.get_close_matches(words, known, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return "list the boards with: revedge devices list"


def _parse(path: Path) -> dict[str, Any]:
    try:
        raw: dict[str, Any] = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise _damaged(path, f"is not TOML ({error})") from None
    version = raw.get("version")
    if version != FORMAT_VERSION:
        raise _damaged(
            path, f"has version {version!r}, but this revedge reads version {FORMAT_VERSION}"
        )
    return raw


def _damaged(path: Path, why: str) -> DeviceError:
    return DeviceError(f"board file {path} {why}; correct it, or install revedge again")


def _read(path: Path, name: str, variant: str | None) -> Board:
    raw = _parse(path)
    variants = raw.pop("variants", {})
    if variant is not None:
        raw |= variants[variant]
    unknown = sorted(set(raw) - set(_HEAD) - set(_FACTS))
    if unknown:
        raise _damaged(path, f"has the unknown key {unknown[0]!r}")
    for key, kind in _HEAD.items():
        if not isinstance(raw.get(key), kind):
            raise _damaged(path, f"needs {key} as {kind.__name__}, but has {raw.get(key)!r}")
    if raw["kind"] not in _KINDS:
        raise _damaged(path, f"has kind {raw['kind']!r}, which is none of {', '.join(_KINDS)}")
    raw = {**dict.fromkeys(_SELDOM_KNOWN, _UNKNOWN), **raw}
    facts = {key: _fact(path, key, raw.get(key)) for key in _FACTS}
    values: dict[str, Any] = {key: fact.value for key, fact in facts.items()}
    return Board(
        name=name,
        title=raw["title"],
        kind=raw["kind"],
        unified_memory=raw["unified_memory"],
        facts=facts,
        **values,
    )


def _fact(path: Path, key: str, table: object) -> Fact:
    """Check one table with value, source and verified."""
    if not isinstance(table, dict) or set(table) != {"value", "source", "verified"}:
        raise _damaged(path, f"needs [{key}] with value, source and verified")
    value, source, verified = table["value"], table["source"], table["verified"]
    if not isinstance(source, str) or not source.strip() or not isinstance(verified, bool):
        raise _damaged(path, f"needs a source in words and verified = true or false in [{key}]")
    if value == "unknown":
        return Fact(value=None, source=source, verified=verified)
    if not isinstance(value, _FACTS[key]) or isinstance(value, bool):
        raise _damaged(path, f"has {value!r} as value of [{key}], which is of the wrong kind")
    if isinstance(value, list):
        good = _is_word if key.endswith("_precisions") else _is_positive
        if not all(good(item) for item in value):
            kind = "names" if good is _is_word else "positive numbers"
            raise _damaged(path, f"has {value!r} in [{key}], where {kind} belong")
        value = tuple(value)
    if isinstance(value, int) and value < 0:
        raise _damaged(path, f"has the negative number {value} in [{key}]")
    return Fact(value=value, source=source, verified=verified)


def _is_word(item: object) -> bool:
    return isinstance(item, str) and item != ""


def _is_positive(item: object) -> bool:
    return isinstance(item, int | float) and item > 0
