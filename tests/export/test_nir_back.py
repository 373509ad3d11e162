"""A NIR graph that was read is written again: same nodes, same parameters, same edges, same spikes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from zoo import KINDS, events

from revedge.export.nir_graph import nir_graph, write_nir
from revedge.export.nir_import import NirNet, NirNeuron, read_nir

nir = pytest.importorskip("nir")
from revedge.export.nir_back import graph_of, write_again  # noqa: E402


def _same(first: Any, second: Any) -> None:
    """Node for node; floats as the float32 that both hold."""
    assert list(first.nodes) == list(second.nodes) or set(first.nodes) == set(second.nodes)
    assert sorted(first.edges) == sorted(second.edges)
    for name, node in first.nodes.items():
        other = second.nodes[name]
        assert type(node) is type(other)
        for key, value in vars(node).items():
            if key in ("metadata", "input_type", "output_type"):
                continue
            found = np.asarray(getattr(other, key))
            wanted = np.asarray(value)
            if wanted.dtype.kind == "f":
                wanted, found = wanted.astype(np.float32), found.astype(np.float32)
            assert np.array_equal(np.broadcast_to(wanted, found.shape), found), f"{name}.{key}"


@pytest.mark.parametrize(
    "kind",
    ["lif reset to -0.2", "plif", "if hard", "average pool", "coupling, two blocks", "dense head"],
)
def test_round_trip_of_our_networks(kind: str, tmp_path: Path) -> None:
    """Network, NIR, module, NIR again: the graphs are equal, and the file read back steps to the same bits."""
    net = KINDS[kind]()
    first = nir_graph(net)
    _same(first, graph_of(NirNet(first)))
    write_nir(net, tmp_path / "first.nir")
    once = read_nir(tmp_path / "first.nir")
    write_again(once, tmp_path / "second.nir")
    twice = read_nir(tmp_path / "second.nir")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["first.nir", "second.nir"]
    # Edges may come in another order, and with them neurons and terms of a sum.
    states = dict(zip(once.neurons, once.initial_states(2), strict=True))
    for x in torch.from_numpy(events(4, 2, 1, net.in_shape)):
        a = once.step(x, [states[name] for name in once.neurons])
        b = twice.step(x, [states[name] for name in twice.neurons])
        spikes = dict(zip(twice.neurons, b.spikes, strict=True))
        assert all(
            torch.equal(s, spikes[name]) for name, s in zip(once.neurons, a.spikes, strict=True)
        )
        assert torch.allclose(a.output, b.output, atol=1e-6)
        states = dict(zip(once.neurons, a.states, strict=True))


def test_round_trip_of_a_graph_of_others() -> None:
    """A value per neuron, sum pooling, an IF without a reset value, a skip connection, convolutions of both ranks."""
    rng = np.random.default_rng(0)
    shape = (2, 4, 4)
    graph = nir.NIRGraph(
        nodes={
            "in": nir.Input({"input": np.array(shape)}),
            "conv": nir.Conv2d(
                (4, 4), rng.random((3, 2, 3, 3)), (1, 1), (1, 1), (1, 1), 1, rng.random(3)
            ),
            "if": nir.IF(r=rng.random((3, 4, 4)), v_threshold=rng.random((3, 4, 4))),
            "pool": nir.SumPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0])),
            "flat": nir.Flatten({"input": np.array([3, 2, 2])}, start_dim=0, end_dim=-1),
            "w": nir.Affine(rng.random((5, 12)), rng.random(5)),
            "lif": nir.LIF(
                tau=1e-4 * (2 + rng.random(5)),
                r=rng.random(5),
                v_leak=rng.random(5),
                v_threshold=rng.random(5),
            ),
            "straight": nir.Linear(rng.random((5, 12))),
            "out": nir.Output({"output": np.array([5])}),
        },
        edges=[
            *[("in", "conv"), ("conv", "if"), ("if", "pool"), ("pool", "flat"), ("flat", "w")],
            *[("w", "lif"), ("lif", "out"), ("flat", "straight"), ("straight", "out")],
        ],
    )
    _same(graph, graph_of(NirNet(graph)))


def test_what_was_trained_since_is_written() -> None:
    """Weights and thresholds that were changed after reading stand in the graph."""
    net = NirNet(nir_graph(KINDS["lif hard"]()))
    neuron = net.layer(net.neurons[0])
    assert isinstance(neuron, NirNeuron)
    neuron.v_threshold.add_(0.25)
    wanted = neuron.v_threshold.numpy().copy()
    assert np.array_equal(graph_of(net).nodes[net.neurons[0]].v_threshold, wanted)
