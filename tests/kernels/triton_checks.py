"""What the Triton kernels must do, wherever they run: in Triton's interpreter, or on a GPU.

Each check is a function of :class:`Where`. test_triton.py runs them in a child process, because
Triton decides at its import whether it interprets.
"""

import pytest
import torch
import triton_norm_checks as norm
from kernel_checks import assert_same_bits
from torch import Tensor
from triton_where import VARIANTS, Where, same

from revedge.kernels import SURROGATES, NeuronParams, ReversibleParams, reference


def check_neuron(where: Where, p: NeuronParams, x: Tensor, *, with_state: bool) -> None:
    floats, state = p.as_floats(), x.shape[1:]
    v0 = torch.randn(state) if with_state else None
    for pack in (False, True):
        expected = reference.neuron_forward(x, v0, p, pack)
        same(where("neuron_forward", x, v0, floats, pack, True), expected)
    g, g_v = torch.randn_like(x), torch.randn(state) if with_state else None
    g_x = g.clone()
    g_v0, g_leak = reference.neuron_backward_(x, v0, g_x, g_v, p)
    kept = g.clone()
    same(where("neuron_backward", x, v0, g, g_v, floats), (g_x, g_v0, g_leak))
    assert_same_bits(g, kept)
    same(where("neuron_backward_", x, v0, g, g_v, floats, True), (g_v0, g_leak))
    assert_same_bits(g, g_x)


def neuron_every_variant(where: Where) -> None:
    """All surrogates, resets, detachments and leaks; bits that share bytes and bits that do not."""
    for i, p in enumerate(VARIANTS):
        x = torch.randn(4, (7, 300, 16)[i % 3]) * 1.5
        check_neuron(where, p, x, with_state=i % 2 == 0)


def neuron_every_size(where: Where) -> None:
    """From one neuron and one step on, blocks that are not full, several dimensions."""
    for shape in ((1, 1), (2, 3), (7, 63), (1, 257), (3, 512), (2, 3, 5, 7, 3)):
        for with_state in (False, True):
            check_neuron(where, VARIANTS[3], torch.randn(shape) * 1.5, with_state=with_state)


def neuron_on_the_threshold(where: Where) -> None:
    """Multiples of 1/4 meet the threshold, and the edges of the surrogates, exactly."""
    for surrogate in SURROGATES:
        for v_reset in (0.0, None):
            p = NeuronParams(
                decay=1.0, gain=1.0, v_reset=v_reset, surrogate=surrogate, alpha=1.0,
                detach_reset=False,
            )  # fmt: skip
            check_neuron(where, p, torch.randint(-4, 8, (5, 100)) / 4, with_state=False)


def neuron_blocks_share_a_program(where: Where) -> None:
    """One program after another block: the scratch of the block before leaves no trace."""
    with where.one_slab():
        for p in (VARIANTS[3], VARIANTS[-1]):
            check_neuron(where, p, torch.randn(3, 700) * 1.5, with_state=True)


def neuron_without_state(where: Where) -> None:
    """Who does not ask for the last membrane, or for the gradient of the first, gets the rest."""
    p, x = VARIANTS[3], torch.randn(3, 40) * 1.5
    for pack in (False, True):
        s, _ = reference.neuron_forward(x, None, p, pack)
        found = where("neuron_forward", x, None, p.as_floats(), pack, False)
        same(found, (s, torch.empty(0)))
    g = torch.randn_like(x)
    g_x = g.clone()
    _, g_leak = reference.neuron_backward_(x, None, g_x, None, p)
    found = where("neuron_backward_", x, None, g, None, p.as_floats(), False)
    same(found, (torch.empty(0), g_leak))
    assert_same_bits(g, g_x)


def neuron_leak_goes_on(where: Where) -> None:
    """The gradient of a leak goes on from that of later steps."""
    p = next(each for each in VARIANTS if each.learns_leak)
    x, g, leak = torch.randn(3, 40), torch.randn(3, 40), torch.randn(40)
    expected = reference.neuron_backward_(x, None, g.clone(), None, p, True, leak)
    same(where("neuron_backward_", x, None, g, None, p.as_floats(), True, leak), expected)


def neuron_step_repeated(where: Where) -> None:
    """One step expanded over time is read in place."""
    for p in VARIANTS[::11]:
        x = torch.randn(1, 3, 91).mul_(1.5).expand(4, 3, 91)
        for pack in (False, True):
            expected = reference.neuron_forward(x, None, p, pack)
            same(where("neuron_forward", x, None, p.as_floats(), pack, True), expected)
        g = torch.randn(4, 3, 91)
        g_x = g.clone()
        expected = reference.neuron_backward_(x, None, g_x, None, p)
        same(where("neuron_backward_", x, None, g, None, p.as_floats(), True), expected)
        assert_same_bits(g, g_x)


def grid(where: Where) -> None:
    """Sums on the grid, with and without x and norm, both signs; zeros keep their bits."""
    none = torch.empty(0)
    for shape in ((1, 1), (1, 3), (5, 3, 100), (2, 2, 1030), (4, 3, 7, 7)):
        y, scale, shift = torch.randn(shape), torch.randn(shape[1]), torch.randn(shape[1])
        y.view(-1)[0] = 0.5 * 2.0**-10  # half of a step, which rounds to even
        y.view(-1)[-1] = -0.0
        x, empty = torch.round(torch.randn(shape) * 2**10) / 2**10, torch.empty(shape)
        x.view(-1)[-1] = -0.0
        for base in (x, None):
            for sign in (1, -1):
                for a, b in ((scale, shift), (none, none)):
                    out, expected = empty.clone(), empty.clone()
                    assert reference.grid_add_(base, y, a, b, 10, sign, expected)
                    assert where("grid_add_", base, y, a, b, 10, sign, out, 0) == (True,)
                    assert_same_bits(out, expected)
    values = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, -0.2, 0.0, -0.0]) / 2**14
    out = torch.empty(8)
    where("grid_add_", None, values, none, none, 14, 1, out, 0)
    assert_same_bits(out, torch.tensor([0.0, 2.0, 2.0, 0.0, -2.0, 0.0, 0.0, 0.0]) / 2**14)


def grid_out_of_range(where: Where) -> None:
    """One bad value among many, the boundary itself, NaN and infinity are noticed."""
    one, zero, none = torch.ones(2), torch.zeros(2), torch.empty(0)
    for bad in (512.0, -512.0, float("nan"), float("inf"), 511.99):
        y = torch.zeros(4, 2, 300)
        y[3, 1, 299] = bad
        for scale, shift in ((one, zero), (none, none)):
            found = where("grid_add_", None, y, scale, shift, 14, 1, torch.empty_like(y), 0)
            assert found == (bad == 511.99,)


def bits(where: Where) -> None:
    """Bits there and back, at every remainder of 8."""
    for numel in (0, 1, 3, 7, 8, 9, 63, 100, 1030):
        s = (torch.rand(numel) < 0.3).float()
        packed = reference.pack_bits(s)
        same(where("pack_bits", s), (packed,))
        same(where("unpack_bits", packed, [numel]), (s,))
    (packed,) = where("pack_bits", torch.tensor([0.0, -2.0, -0.0, float("nan")]))
    assert packed.tolist() == [10]


def reversible(where: Where) -> None:
    """Forward, reconstruction and gradient: 2, 3, 4 groups on every dimension, all surrogates."""
    shapes = [((1, 1, 2), -1, 2), ((4, 3, 6), -1, 3), ((2, 1, 4, 63), 2, 4), ((3, 2, 6, 5, 17), 2, 2)]  # fmt: skip
    for i, (shape, dim, groups) in enumerate(shapes):
        for j, surrogate in enumerate(SURROGATES):
            rp = ReversibleParams(
                groups=groups, tau=1.7, alpha=0.13, beta=0.9, v_threshold=0.8, v_reset=0.05,
                detach_reset=(i + j) % 2 == 0, surrogate=surrogate,
            )  # fmt: skip
            check_reversible(where, rp, torch.randn(shape), dim)
    with where.one_slab():
        check_reversible(where, ReversibleParams(groups=3), torch.randn(3, 2, 3 * 301), -1)


def check_reversible(where: Where, rp: ReversibleParams, x: Tensor, dim: int) -> None:
    floats = rp.as_floats()
    y, v, m = reference.reversible_forward_stored(x, rp, dim)
    same(where("reversible_forward", x, floats, dim), (y, v))
    same(where("reversible_forward_stored", x, floats, dim), (y, v, m))
    rebuilt = reference.reversible_reconstruct(y, rp, dim)
    same(where("reversible_reconstruct", y, floats, dim), (rebuilt,))
    for name, given in (("reversible", ()), ("reversible_stored", (m,))):
        g = torch.randn_like(x)
        g_x, kept = g.clone(), g.clone()
        expected = getattr(reference, f"{name}_backward_")(y, *given, g_x, rp, dim)
        same(where(f"{name}_backward", y, *given, g, floats, dim), (g_x,))
        assert_same_bits(g, kept)
        same(where(f"{name}_backward_", y, *given, g, floats, dim), (expected,))
        assert_same_bits(g, g_x)


def extremes(where: Where) -> None:
    """NaN, infinity, subnormal and huge inputs take the reference's way."""
    x = torch.tensor([[float("nan"), float("inf"), -float("inf"), 1e-40, 3e38, -3e38, 1e-20, 0.0]])
    x = x.repeat(3, 1)
    for surrogate in SURROGATES:
        p = NeuronParams(decay=0.5, gain=1.0, surrogate=surrogate, v_threshold=1e-30)
        g = torch.ones_like(x)
        g_x = g.clone()
        expected = reference.neuron_backward_(x, None, g_x, None, p)
        results = where("neuron_backward_", x, None, g, None, p.as_floats(), True)
        for a, b in zip((g, *results), (g_x, *expected), strict=True):
            assert bool((a.isnan() == b.isnan()).all())
            assert_same_bits(a.nan_to_num(), b.nan_to_num())


def nothing(where: Where) -> None:
    """Empty tensors and no steps: right shapes, and the state passes through."""
    p = VARIANTS[3].as_floats()
    v0, no_steps = torch.randn(5), torch.empty(0, 5)
    same(where("neuron_forward", no_steps, v0, p, False, True), (no_steps, v0))
    s, v = where("neuron_forward", torch.empty(3, 0), None, p, True, True)
    assert (s.shape, v.shape) == ((0,), (0,))
    found = where("neuron_backward_", no_steps, None, no_steps, v0, p, True)
    same(found, (v0, torch.zeros(5)))
    c = torch.ones(3)
    assert where("norm_forward", torch.empty(0, 3, 4), c, c)[0].shape == (0, 3, 4)


def wrong_shapes(where: Where) -> None:
    """A state, gradient or scale of another shape is an error, not a read past the end."""
    p, x = VARIANTS[0].as_floats(), torch.zeros(4, 6)
    y, c, short = torch.zeros(4, 2, 3, 5), torch.zeros(3), torch.zeros(2)
    flat = y.flatten(0, 1)
    for name, args, message in (
        ("neuron_forward", (x, torch.zeros(5), p, False, True), "v0 has shape"),
        ("neuron_backward_", (x, None, torch.zeros(3, 6), None, p, True), "g_s has shape"),
        ("neuron_backward_", (x, None, x, torch.zeros(5), p, True), "g_vT has shape"),
        ("norm_forward", (flat, short, c), "scale has shape"),
        ("norm_backward_", (flat, flat, c, c, short, 0), "weight has shape"),
        ("norm_neuron_forward", (y, c, short, None, p, False, True), "shift has shape"),
        ("norm_neuron_backward_", (y, y, c, short, c, c, p, 0), "inv_std has shape"),
        ("norm_neuron_span_backward_", (y, c, c, None, y, c, p), "g_vT has shape"),
        ("norm_neuron_span_backward_", (y, short, c, None, y, None, p), "scale has shape"),
        ("grid_add_", (None, flat, c, c, 14, 1, y, 0), "out has shape"),
        ("reversible_backward_", (y, flat, ReversibleParams().as_floats(), -1), "g_y has shape"),
    ):
        with pytest.raises(ValueError, match=message):
            where(name, *args)


CHECKS = {
    check.__name__: check
    for check in (
        neuron_every_variant,
        neuron_every_size,
        neuron_on_the_threshold,
        neuron_blocks_share_a_program,
        neuron_step_repeated,
        neuron_without_state,
        neuron_leak_goes_on,
        norm.norm_every_shape,
        norm.norm_order_of_sums,
        norm.norm_of_constants,
        norm.norm_neuron,
        norm.norm_neuron_pool,
        norm.slabs_of_channels,
        norm.slabs_that_do_not_fit,
        grid,
        grid_out_of_range,
        bits,
        reversible,
        extremes,
        nothing,
        wrong_shapes,
    )
}
