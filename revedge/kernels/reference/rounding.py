"""Numbers as float32 has them."""

import struct


def to_float32(value: float) -> float:
    """Return ``value`` rounded to float32, as a Python float."""
    return float(struct.unpack("f", struct.pack("f", value))[0])
