"""`revedge devices`: the boards that revedge knows, and what this machine is. Imports no torch."""

import argparse
from typing import TYPE_CHECKING

from revedge.cli.output import emit, table
from revedge.units import format_bytes

if TYPE_CHECKING:
    from revedge.devices.boards import Board, Value
    from revedge.devices.probe import Machine

_EPILOG = """examples:
  revedge devices list
  revedge devices show jetson-orin-nano-8gb
  revedge devices probe --gpu --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add list, show and probe."""
    parser.epilog = _EPILOG
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="every board, one line each")
    show = actions.add_parser("show", help="one board, each number with its source")
    show.add_argument(
        "name", metavar="NAME", help="a board of the list, or a board file ending in .toml"
    )
    probe = actions.add_parser("probe", help="what this machine offers")
    probe.add_argument(
        "--gpu", action="store_true", help="ask torch for CUDA devices, in a child process"
    )
    for action, example in (
        (listing, "revedge devices list --json"),
        (show, "revedge devices show raspberry-pi-5-8gb"),
        (probe, "revedge devices probe --gpu"),
    ):
        action.epilog = f"example: {example}"
        # Also after the action, where people type them; SUPPRESS keeps what stood before it.
        for flag, text in (
            ("--json", "print one JSON object as the last line of stdout"),
            ("--debug", "show the traceback of an error"),
        ):
            action.add_argument(flag, action="store_true", default=argparse.SUPPRESS, help=text)


def run(args: argparse.Namespace) -> int:
    """Print what was asked for."""
    if args.action == "list":
        _list(args)
    elif args.action == "show":
        _show(args)
    else:
        _probe(args)
    return 0


def _list(args: argparse.Namespace) -> None:
    from revedge.devices.boards import load, names

    boards = [load(name) for name in names()]
    rows = [
        (board.name, _size(board.ram_bytes), _speed(board), board.cuda_cores or None, board.title)
        for board in boards
    ]
    text = table(("board", "RAM", "memory", "CUDA cores", "name"), rows)
    emit(args, text, {"boards": [board.to_dict() for board in boards]})


def _show(args: argparse.Namespace) -> None:
    from revedge.devices.boards import load

    board = load(args.name)
    rows = [
        (key, _readable(key, fact.value), "" if fact.verified else "not verified", fact.source)
        for key, fact in board.facts.items()
    ]
    emit(
        args,
        f"{board.title} ({board.name})\n" + table(("fact", "value", "", "source"), rows),
        board.to_dict(),
    )


def _probe(args: argparse.Namespace) -> None:
    from revedge.devices.probe import probe

    machine = probe(gpu=args.gpu, bandwidth=True)
    emit(args, _describe(machine), machine.to_dict())


def _describe(machine: "Machine") -> str:
    limit = machine.cgroup_limit_bytes
    total, available = (
        format_bytes(machine.mem_total_bytes),
        format_bytes(machine.mem_available_bytes),
    )
    swap, swap_free = format_bytes(machine.swap_total_bytes), format_bytes(machine.swap_free_bytes)
    rows: list[tuple[str, str]] = [
        ("board", machine.board or f"{machine.architecture} machine, Linux {machine.kernel}"),
        (
            "CPU",
            f"{machine.cpu or 'unknown'}, {machine.cpu_cores_allowed} of {machine.cpu_cores} cores",
        ),
        (
            "RAM",
            f"{total}, {available} available",
        ),
        (
            "swap",
            f"{swap}, {swap_free} free",
        ),
        ("cgroup limit", "none" if limit is None else format_bytes(limit)),
        (
            "usable",
            f"{format_bytes(machine.usable_bytes)}: the largest budget that makes sense now",
        ),
        *_measured(machine),
        ("page size", format_bytes(machine.page_size_bytes)),
        ("Python", machine.python_version),
        ("torch", machine.torch_version or "not installed"),
    ]
    if machine.tegra:
        rows.append(("Jetson", machine.l4t or "a Tegra, release unknown"))
    if machine.power_mode:
        rows.append(("power mode", machine.power_mode))
    if machine.power_modes:
        rows.append(("power modes", ", ".join(machine.power_modes)))
    for gpu in machine.gpus or ():
        shared = ", shares the RAM" if gpu.unified_memory else ""
        size = format_bytes(gpu.memory_bytes)
        rows.append(
            ("GPU", f"{gpu.name}, {size}{shared}, {gpu.sm_count} SMs, cc {gpu.compute_capability}")
        )
    if not machine.gpus:
        asked = machine.gpu_note != "not asked"
        rows.append(("GPU", machine.gpu_note if asked else "not asked; add --gpu"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _measured(machine: "Machine") -> list[tuple[str, str]]:
    speed = machine.bandwidth_bytes_per_s
    return [] if speed is None else [("memory", f"{speed / 1e9:.1f} GB/s, measured by a copy")]


def _size(size_bytes: int | None) -> str:
    return "-" if size_bytes is None else format_bytes(size_bytes)


def _speed(board: "Board") -> str:
    speed = board.bandwidth_bytes_per_s
    return "-" if speed is None else f"{speed / 1e9:.1f} GB/s"


def _readable(key: str, value: "Value") -> str:
    if value is None:
        return "unknown"
    if isinstance(value, tuple):
        return ", ".join(one if isinstance(one, str) else f"{one:g}" for one in value) or "none"
    if key.endswith("_per_s"):
        return f"{value} ({float(value) / 1e9:.1f} GB/s)"
    if key.endswith("_bytes"):
        return f"{value} ({format_bytes(float(value))})"
    return str(value)
