"""How values come onto a grid in ONNX nodes: streams in float numerics, everything in exact ones."""

from revedge.export.blocks import Grid
from revedge.export.exact_layers import InputLevels, Scaled, Snap, SumOf, TwoDigits
from revedge.export.onnx_step import StepGraph, rule


@rule(Grid, multiples=True)
def _grid(g: StepGraph, module: Grid, x: str) -> str:
    # An integer on this grid already, or what an operator gave: times a power of two, which goes into its weights.
    times = module.up / g.times.get(x, 1.0)
    up = x if times == 1.0 else g.op("Mul", [x, g.scalar(times)], "up")
    n = g.op("Round", [up]) if g.wanted is None else g.rounded(up, g.wanted)
    if g.keeps_integers:
        g.times[n] = module.up
        return n
    return g.op("Mul", [n, g.scalar(module.down)], "grid")


@rule(InputLevels)
def _input_levels(g: StepGraph, module: InputLevels, x: str) -> str:
    if module.scaled:
        x = g.op("Mul", [x, g.scalar(module.inverse)], "unscaled")
    return g.op("Clip", [g.op("Round", [x]), g.scalar(0.0), g.scalar(module.top)], "levels")


@rule(SumOf)
def _sum_of(g: StepGraph, module: SumOf, x: str) -> str:
    mean = g.apply(module.pool, x, "pool")
    x = g.op("Round", [g.op("Mul", [mean, g.scalar(module.up)], "count")], "sum")
    return g.op("Mul", [x, g.scalar(module.down)], "sum") if module.fine else x


@rule(Snap, multiples=True)
def _snap(g: StepGraph, module: Snap, x: str) -> str:
    if x in g.times:  # the scale is in the weights already
        n = g.op("Round", [x], "value")
        g.times[n] = g.times[x]
        return n
    scale = g.weight("scale", module.scale.reshape([-1] + [1] * (g.ranks[x] - 2)))
    if module.fine:
        x = g.op("Mul", [x, g.scalar(module.up)], "up")
    return g.op("Mul", [g.op("Round", [x]), scale], "value")


@rule(TwoDigits)
def _two_digits(g: StepGraph, module: TwoDigits, x: str) -> str:
    n = g.op("Round", [g.op("Mul", [x, g.scalar(module.up)], "up")], "integer")
    upper = g.op("Round", [g.op("Mul", [n, g.scalar(module.down)], "down")], "upper")
    carried = g.op("Mul", [upper, g.scalar(module.base)], "carried")
    lower = g.op("Sub", [n, carried], "lower")
    high = g.op("Round", [g.apply(module.op, upper, "op")], "high")
    low = g.op("Round", [g.apply(module.op, lower, "op")], "low")
    low = g.op("Add", [low, g.weight("bias", module.bias)], "low")
    y = g.op("Add", [g.op("Mul", [high, g.scalar(module.base)], "high"), low], "sum")
    return g.op("Mul", [y, g.weight("scale", module.scale)], "value")


@rule(Scaled)
def _scaled(g: StepGraph, module: Scaled, x: str) -> str:
    return g.op("Mul", [x, g.scalar(module.factor)], "scaled")
