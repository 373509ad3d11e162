"""What every command prints: text for people; with --json, one object as the last line."""

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any


def emit(args: argparse.Namespace, text: str, payload: Mapping[str, Any]) -> None:
    """Print ``text``, then ``payload`` as one line of JSON if ``--json`` was given.

    The keys of ``payload`` carry their units (``_bytes``, ``_s``, ...). NaN and infinity, which
    JSON does not know, are an error here and not in the script that reads the line.
    """
    if text:
        print(text, flush=True)
    if args.json:
        print(json.dumps(payload, allow_nan=False), flush=True)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return rows under a header in aligned columns; columns of numbers stand to the right.

    >>> print(table(("board", "SMs"), [("nano", 1), ("thor", 20)]))
    board  SMs
    nano     1
    thor    20
    """
    cells = [
        tuple(header),
        *(tuple("-" if one is None else str(one) for one in row) for row in rows),
    ]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    right = [
        bool(rows) and all(isinstance(row[i], int | float | None) for row in rows)
        for i in range(len(header))
    ]
    lines = (
        "  ".join(
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in cells
    )
    return "\n".join(lines)
