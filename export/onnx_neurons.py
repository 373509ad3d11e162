"""How neurons are written as ONNX nodes: charge, fire, reset.

Operators are passes over memory, and a third of a step's time: where the target has `ONE_PASS`, a neuron fires in one
pass, and is reset in one if its state never leaves the graph and so may be kept as its negative. Behind a stream that
is an integer on its grid everything is as many times larger, the state too.
"""

import numpy as np

from revedge.export.cells import Cell, ReversibleCell
from revedge.export.onnx_step import StepGraph, Twin, rule

ONE_PASS = frozenset(["HardSigmoid", "ThresholdedRelu"])
_LEAST_THRESHOLD = 2.0**-60  # whose distance to the float32 below it has a finite reciprocal
_FLOAT = 1  # onnx.TensorProto.FLOAT


@rule(Cell, multiples=True)
def _cell(g: StepGraph, module: Cell, x: str) -> str:
    state = g.take()
    shape = g.shape
    spikes = _found_or_written(g, module, x, state)
    if g.wider.get(spikes, (0, 0)) == (0, 0):
        g.spiking[spikes] = shape
    return spikes


def _found_or_written(g: StepGraph, module: Cell, x: str, state: str) -> str:
    """A neuron; where it was written before, charged by the same value, it is not written again."""
    fast = g.at_once and module.v_threshold >= _LEAST_THRESHOLD
    negative = fast and g.keeps_states and module.hard and module.v_reset == 0.0
    if not (negative and g.at_rest):
        return _written(g, module, x, state, negative=negative)
    same = tuple((name, getattr(module, name)) for name in sorted(Cell.__annotations__))
    parts = g.parts.get(x, [x])
    twins = [twin for part in parts if (twin := g.twins.get((part, same)))]
    own = parts[len(twins) :]  # the first ones have a twin, at most one has none
    alike = [g.wider.get(twin.spikes, (0, 0)) == g.columns == (0, 0) for twin in twins]
    if not twins or len(own) > 1 or not all(alike) or any((p, same) in g.twins for p in own):
        spikes = _written(g, module, x, state, negative=True)
        g.twins[x, same] = Twin(spikes, g.carried[-1])
        return spikes
    g.merge(twins)
    spiking = [twin.spikes for twin in twins]
    if own:
        g.shapes[state] = g.shape
        spiking.append(_written(g, module, own[0], state, negative=True))
        g.twins[own[0], same] = Twin(spiking[-1], g.carried[-1])
    return g.join(spiking, "spikes") if len(spiking) > 1 else spiking[0]


def _written(g: StepGraph, module: Cell, x: str, h: str, *, negative: bool) -> str:
    """Charge ``h``, fire, reset; return the spikes."""
    charge = "Sub" if negative else "Add"  # rounding, leak and limit are symmetric
    if not negative:
        x = g.plain(x)
    times = g.times.get(x, 1.0)
    before = h
    if module.rounded:
        h = g.op("Round", [g.op("Mul", [h, g.scalar(module.leak_up / times)], "leak")])
        h = g.op("Mul", [h, g.scalar(module.leak_down * times)], "leaked")
    elif module.leaky:
        h = g.op("Mul", [h, g.scalar(module.decay)], "leak")
    if module.scaled:
        x = g.op("Mul", [x, g.scalar(module.gain)], "input")
    h = g.op(charge, [h, x], "membrane")
    if module.biased:
        h = g.op(charge, [h, g.scalar(module.bias * times)], "membrane")
    if module.late:  # Greater, because GreaterOrEqual is where a neuron fires
        fired = g.op("Greater", [before, g.scalar(module.lost)], "fired before")
        spent = g.op("Cast", [fired], "spikes before", to=_FLOAT)
        h = g.op("Sub", [h, g.op("Mul", [spent, g.scalar(module.lost)], "lost")], "membrane")
    if module.limited:
        limit = module.limit * times
        h = g.op("Clip", [h, g.scalar(-limit), g.scalar(limit)], "limited")
    if negative:  # -h stays where it is above -threshold, and is 0 elsewhere: one pass
        v = g.op("ThresholdedRelu", [h], "state", alpha=-module.v_threshold * times)
        g.give(v, -times)
        s = _fire(g, _wider(g, h), module.v_threshold, -times)
        g.wider[s] = g.columns
        return s
    s = _fire(g, h, module.v_threshold)
    if module.late:
        g.give(h)
        return s
    if module.hard:  # h - h s is exactly h or 0, in two passes; Where needs four in onnxruntime
        v = g.op("Sub", [h, g.op("Mul", [h, s], "lost")], "state")
        if module.v_reset != 0.0:
            v = g.op("Add", [v, g.op("Mul", [s, g.scalar(module.v_reset)], "reset")], "state")
    else:
        v = g.op("Sub", [h, g.op("Mul", [s, g.scalar(module.v_threshold)], "lost")], "state")
    g.give(v)
    return s


@rule(ReversibleCell)
def _reversible(g: StepGraph, module: ReversibleCell, x: str) -> str:
    dim, width, rest = module.dim, module.width, module.rest
    v = g.take()
    v_first, v_last = g.split(v, dim, rest, width, label="v")
    leak, beta = g.scalar(module.leak), g.scalar(module.beta)

    def integrate(v: str, drive: str) -> str:
        return g.op("Add", [v, g.op("Mul", [g.op("Sub", [drive, v]), leak])], "membrane")

    def hand_on(s: str, x: str) -> str:
        return g.op("Add", [s, g.op("Mul", [x, beta])], "y")

    if rest == width:  # two groups: cut, as Split; see `Graph.split`
        x_first, x_last = g.split(x, dim, width, width, label="x")
        x_begin = x_first
    else:
        x_first, x_last = g.narrow(x, dim, 0, rest), g.narrow(x, dim, width, rest)
        x_begin = g.narrow(x, dim, 0, width)
    m_first = integrate(v_first, x_first)
    y_first = hand_on(_fire(g, m_first, module.v_threshold), x_last)
    drive = g.narrow(y_first, dim, rest - width, width)
    m_last = integrate(v_last, drive)
    y_last = hand_on(_fire(g, m_last, module.v_threshold), x_begin)
    y = g.op("Concat", [y_first, y_last], "y", axis=dim)
    m = g.op("Concat", [m_first, m_last], "membrane", axis=dim)
    kept = g.op("Mul", [g.op("Sub", [g.scalar(1.0), y], rank=g.ranks[y]), m], "kept")
    kept = g.op("Add", [kept, g.op("Mul", [y, g.scalar(module.v_reset)], "reset")])
    g.give(g.op("Add", [kept, g.op("Mul", [v, g.scalar(module.alpha)])], "state"))
    return y


def _fire(g: StepGraph, h: str, threshold: float, multiple: float = 1.0) -> str:
    """1 if the membrane has reached the threshold, else 0: what `revedge.export.onnx_probe` looks for.

    ``h`` is a ``multiple`` of the membrane, a power of two or its negative.

    At once, it is the line that is 0 at the float32 below the threshold and 1 at the threshold, cut off below and
    above. No float32 lies between the two, slope and offset are exact, and so is every product with a power of two.
    """
    if g.at_once and threshold >= _LEAST_THRESHOLD:
        top = np.float32(threshold)
        below = np.nextafter(top, np.float32(0.0))
        slope = 1.0 / (float(top) - float(below))
        slope, offset = slope / multiple, -float(below) * slope
        return g.op("HardSigmoid", [h], "spikes", alpha=slope, beta=offset)
    fired = g.op("GreaterOrEqual", [h, g.scalar(threshold)], "fired")
    return g.op("Cast", [fired], "spikes", to=_FLOAT)


def _wider(g: StepGraph, h: str) -> str:
    """The membrane with `StepGraph.columns` of zeros, which do not fire.

    A convolution of each channel with 1: it and the firing behind it are one operator of onnxruntime, so the columns
    cost no pass over memory. Pad would be one, and a slow one.
    """
    left, right = g.columns
    if not (left or right):
        return h
    channels = g.shape[0]
    ones = g.constant(f"ones/{channels}", np.ones((channels, 1, 1, 1), np.float32))
    return g.op("Conv", [h, ones], "wider", group=channels, pads=[0, left, 0, right])
