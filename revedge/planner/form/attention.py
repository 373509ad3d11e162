"""Bytes of spiking self-attention, `revedge.engine.attention`: n planes, C channels in h heads of width d, L tokens.

Operands of a batched product that lie beside others in memory are copied first, unless there is one plane or one head.
"""

from revedge.planner.form.meter import Block, Meter
from revedge.planner.form.shape import Plane


def attend(m: Meter, plane: Plane, n: int, heads: int) -> Block:
    """``(v k^T) q`` or ``v (k^T q)``, whichever is cheaper, times the scale. ``plane`` is (3C, H, W)."""
    values, inner, copied = _sizes(plane, n, heads)
    m.note(*[4 * copied] * 2, 4 * inner)
    product = m.floats(inner)
    m.note(4 * copied, 4 * values)
    out = m.floats(values)
    m.drop(product)
    scaled = m.floats(values)
    m.drop(out)
    return scaled


def attend_back(m: Meter, plane: Plane, n: int, heads: int) -> Block:
    """Gradients of q, k and v one after the other, then stacked."""
    values, inner, copied = _sizes(plane, n, heads)
    by_width = _is_by_width(plane, heads)
    copy = 4 * copied
    scaled = m.floats(values)
    m.note(copy, 4 * inner)
    g_inner = m.floats(inner)

    def through_inner() -> Block:
        """A gradient that takes a second inner product."""
        m.note(copy, copy, 4 * inner)
        second = m.floats(inner)
        made = m.floats(values)
        m.drop(second)
        return made

    def directly() -> Block:
        m.note(copy, 4 * values)
        return m.floats(values)

    order = (through_inner, directly, directly) if by_width else (directly, directly, through_inner)
    parts = [make() for make in order]
    made = m.floats(3 * values)
    m.drop(scaled, g_inner, *parts)
    return made


def _sizes(plane: Plane, n: int, heads: int) -> tuple[int, int, int]:
    """Values of q, of the inner product, and of a copied operand."""
    tokens = plane[1] * plane[2]
    values = n * plane[0] // 3 * tokens
    width = plane[0] // (3 * heads)
    inner = n * heads * (width if _is_by_width(plane, heads) else tokens) ** 2
    return values, inner, values if n > 1 and heads > 1 else 0


def _is_by_width(plane: Plane, heads: int) -> bool:
    return plane[0] // (3 * heads) <= plane[1] * plane[2]
