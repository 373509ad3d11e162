"""The `revedge` command: finds the subcommand, and words every error the same way.

A command is a module with ``add_arguments(parser)`` and ``run(args) -> int``; it is imported only
when it is the one asked for, so that ``revedge --help`` costs no torch.
"""

import argparse
import contextlib
import importlib
import json
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from revedge.errors import RevedgeError

COMMANDS = {
    "train": "train inside a RAM limit",
    "plan": "choose depth, timesteps and memory strategy for a RAM limit",
    "verify": "compare every memory strategy with stored back-propagation through time",
    "export": "write TorchScript, ONNX, pt2 or NIR files and check them against the trained network",
    "run": "run an exported ONNX file, without torch",
    "inspect": "show what an exported ONNX file says about itself",
    "verify-export": "check on the target that an exported ONNX file does what it should",
    "bench": "measure memory and time of strategies, each in a fresh process",
    "devices": "list boards, or probe this one",
    "doctor": "say what this machine can do, and what is missing",
}
_NEED_TORCH = {"train", "plan", "verify", "export", "bench"}
_EPILOG = (
    "exit codes: 0 done, 1 the answer is no (does not fit, check failed, file damaged), 2 usage"
)


def build_parser(command: str | None) -> argparse.ArgumentParser:
    """Return the parser; only ``command``'s module is imported."""
    parser = argparse.ArgumentParser(
        prog="revedge",
        description="Train spiking neural networks on the device, inside a RAM limit, "
        "and ship what was trained.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, text in COMMANDS.items():
        sub = commands.add_parser(
            name, help=text, description=text, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if name == command:
            _module(name).add_arguments(sub)
        sub.add_argument(
            "--json", action="store_true", help="print one JSON object as the last line of stdout"
        )
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _module(command: str) -> Any:
    return importlib.import_module(f"revedge.cli.{command.replace('-', '_')}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    command = next((word for word in words if not word.startswith("-")), None)
    parser = build_parser(command)
    args = parser.parse_args(words)
    if args.version:
        import revedge

        print(f"revedge {revedge.__version__}")
        return 0
    if args.command is None:
        parser.print_help()
        return 2
    try:
        if args.command in _NEED_TORCH:
            import revedge.need_torch
        code: int = _module(args.command).run(args)
        print(end="", flush=True)  # nothing where standard output was closed
        return code
    except BrokenPipeError:  # the reader, `head` for example, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("revedge: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if args.debug:
            traceback.print_exc()
        return report(error, as_json=args.json)


def report(error: Exception, *, as_json: bool) -> int:
    """Print one line for ``error`` and return its exit code."""
    text, code = _one_line(error), int(getattr(error, "exit_code", 1))
    print(f"revedge: error: {text}", file=sys.stderr)
    if as_json:
        floor = getattr(error, "floor_bytes", None)
        more = {} if floor is None else {"floor_bytes": floor}
        with contextlib.suppress(OSError):  # standard output may be what failed
            print(json.dumps({"error": text, "exit_code": code, **more}), flush=True)
    return code


def _one_line(error: Exception) -> str:
    if isinstance(error, RevedgeError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("revedge"):
        return f"this needs the package {error.name!r}; install it with: pip install 'revedge[all]'"
    if isinstance(error, PermissionError):
        return f"{error.filename}: permission denied; choose a folder that you can write"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {(error.strerror or 'cannot be used').lower()}"
    if isinstance(error, OSError) and error.strerror:  # of a stream that is open already
        return f"{error.strerror.lower()}, while reading or writing"
    text = " ".join(str(error).split())
    return f"not foreseen, {type(error).__name__}: {text}; --debug shows where"


if __name__ == "__main__":
    sys.exit(main())
