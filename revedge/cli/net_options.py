"""The net that `revedge verify` and `revedge bench` measure, apart from its name; shapes and counts of all commands."""

import argparse

from revedge.errors import UsageError


def add_net_options(parser: argparse.ArgumentParser) -> None:
    """Add frames, classes, neuron and threads."""
    add = parser.add_argument
    add("--in-shape", metavar="C,H,W", default="3,32,32", help="of a frame (default: %(default)s)")
    add("--classes", metavar="K", type=int, default=10, help="how many (default: %(default)s)")
    add("--neuron", metavar="NAME", help="if, lif, plif, or for VGG and ResNets reversible")
    add("--static", action="store_true", help="one image per sample instead of T frames")
    add("--threads", metavar="N", type=int, default=1, help="CPU threads (default: %(default)s)")


def parse_shape(text: str) -> tuple[int, int, int]:
    """Return (C, H, W) of ``"3,32,32"``, or of ``"3x32x32"``.

    Raises:
        UsageError: it is not three positive numbers.
    """
    words = text.replace("x", ",").split(",")
    if len(words) != 3 or not all(word.strip().isdigit() and int(word) > 0 for word in words):
        raise UsageError(f"--in-shape {text!r} is not channels,height,width; write it as 2,34,34")
    channels, height, width = map(int, words)
    return channels, height, width


def at_least_one(flag: str, value: int) -> int:
    """Return ``value`` if it is 1 or more.

    Raises:
        UsageError: it is not.
    """
    if value < 1:
        raise UsageError(f"{flag} {value} is not a count; use 1 or more")
    return value
