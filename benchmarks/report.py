"""What every dated report begins with, and how it is written: what a person added under "## Notes" stays."""

import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

NOTES = "## Notes\n"


def machine(packages: Sequence[str] = ("torch",)) -> list[str]:
    """Return lines of hardware, load, versions and commit; no path, no name of the machine."""
    cpu = next((line for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "?: ?")
    memory = next((line for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), "0 0")
    ram_gib = int(memory.split()[1]) / 2**20
    load = (_lines("/proc/loadavg") or ["?"])[0].split()[0]
    versions = [f"{name} {_version(name)}" for name in packages]
    return [
        f"Hardware: {len(os.sched_getaffinity(0))} cores of {cpu.partition(':')[2].strip()}, {ram_gib:.0f} GiB; "
        f"load {load} at the start.",
        f"Versions: {', '.join(versions)}, Python {platform.python_version()}, {' '.join(platform.libc_ver())}.",
        f"Date: {time.strftime('%Y-%m-%d')}, commit {_commit()}.",
    ]


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table in Markdown.

    >>> print(markdown_table(("a", "b"), [(1, 2)]))
    | a | b |
    |---|---|
    | 1 | 2 |
    """
    lines = [header, *rows]
    text = ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines]
    return "\n".join([text[0], "|" + "---|" * len(header), *text[1:]])


def write(path: Path, title: str, command: str, about: Sequence[str], parts: Sequence[str]) -> None:
    """Write a report, keeping the notes of the one that stands there."""
    notes = ""
    if path.exists():
        _, heading, kept = path.read_text("utf-8").partition(NOTES)
        notes = f"\n{heading}{kept}" if heading else ""
    body = [f"# {title}", "\n".join(about), f"Command: `{command}`", *parts]
    path.write_text("\n\n".join(body) + "\n" + notes, "utf-8")


def write_figures(
    path: Path,
    title: str,
    figures: Mapping[str, object],
    header: Sequence[str],
    rows: Sequence[Sequence[object]],
) -> None:
    """Write a report of figures and of the rows that they sum up, by the script that is running now."""
    parts = [
        markdown_table(("figure", "value"), list(figures.items())),
        markdown_table(header, rows),
    ]
    write(path, title, command_line(), machine(), parts)


def command_line() -> str:
    """Return how this script was called, without the folders of this machine."""
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().splitlines()
    except OSError:
        return []


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    here = Path(__file__).parent
    words = ["git", "-C", str(here), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
