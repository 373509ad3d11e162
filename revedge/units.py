"""Bytes as people write them: ``"400MiB"`` <-> 419430400."""

import re

from revedge.errors import UsageError

_FACTORS = {
    "": 1, "b": 1,
    "k": 2**10, "kib": 2**10, "m": 2**20, "mib": 2**20, "g": 2**30, "gib": 2**30, "t": 2**40, "tib": 2**40,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
}  # fmt: skip
_MOST_DIGITS = 30  # more is no number of bytes
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-zA-Z]*)")


def parse_bytes(text: str) -> int:
    """Return the number of bytes that ``text`` names.

    KiB, MiB, GiB (and K, M, G) are binary; kB, MB, GB are decimal; no unit means bytes.

    Raises:
        UsageError: ``text`` is not a positive size.

    >>> parse_bytes("400MiB"), parse_bytes("0.5 GiB"), parse_bytes("1000")
    (419430400, 536870912, 1000)
    """
    match = _SIZE.fullmatch(text.strip())
    factor = _FACTORS.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise UsageError(
            f"size {text!r} is not understood; write a number and a unit, as in 400MiB or 1.5GiB"
        )
    if len(match[1]) > _MOST_DIGITS:
        raise UsageError(f"size {text[:24]!r}... has more than {_MOST_DIGITS} digits; give fewer")
    size = int(float(match[1]) * factor)
    if size <= 0:
        raise UsageError(f"size {text!r} is not positive; write a number and a unit, as in 400MiB")
    return size


def format_bytes(size_bytes: float) -> str:
    """Return ``size_bytes`` as people read it, binary units, one decimal.

    >>> format_bytes(419430400), format_bytes(1536), format_bytes(17)
    ('400.0 MiB', '1.5 KiB', '17 B')
    """
    sign, size = ("-" if size_bytes < 0 else ""), abs(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{sign}{size:.0f} {unit}" if unit == "B" else f"{sign}{size:.1f} {unit}"


def format_seconds(seconds: float) -> str:
    """Return ``seconds`` as people read it, three digits.

    >>> format_seconds(0.0123), format_seconds(4.25), format_seconds(100), format_seconds(7200)
    ('12.3 ms', '4.25 s', '1.67 min', '2 h')
    """
    for unit, size in (("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1000:.3g} ms"


def format_clock(seconds: float) -> str:
    """Return ``seconds`` as a clock shows them, for lines that change.

    >>> format_clock(75.4), format_clock(3675)
    ('1:15', '1:01:15')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
