"""NIR files say what the network does, or are refused with the layer's name; other people's graphs are read."""

from pathlib import Path

import numpy as np
import pytest
import torch
from zoo import KINDS, FakeFrames, events

from revedge.errors import ExportError, UsageError
from revedge.export.nir_graph import DT, nir_graph, write_nir
from revedge.export.nir_import import NirNet, read_nir
from revedge.export.nir_probe import NirProbe
from revedge.export.parity import ParityReport, compare_steps
from revedge.export.predictions import predictions
from revedge.export.probes import TrainedProbe
from revedge.export.writer import export_network

nir = pytest.importorskip("nir")

_SAID = [
    "if hard",
    "lif hard",
    "lif reset to -0.2",
    "lif input not decayed",
    "plif",
    "average pool",
    "normalization on a stream",
    "pool before the grid",
    "normalization in the next feed",
    "sum of branches",
    "residual",
    "coupling, two blocks",
    "coupling off the grid",
    "dense head",
    "static",
]
_REFUSED = {
    "if soft": "soft reset",
    "late reset": "soft reset",
    "plif soft, input not decayed": "soft reset",
    "reversible": "reversible neuron",
    "max pool": "MaxPool2d",
    "attention": "Attend",
}


@pytest.mark.parametrize("kind", _SAID)
def test_graph_follows_the_network(kind: str, tmp_path: Path) -> None:
    """Every membrane, state and logit within its rounding bound, given the network's states and spikes."""
    net = KINDS[kind]()
    write_nir(net, tmp_path / "model.nir")
    trained, report = TrainedProbe(net), ParityReport(steps=16, batches=(1, 3))
    for batch in report.batches:
        probe = NirProbe(tmp_path / "model.nir", trained)
        compare_steps(trained, probe, events(16, batch, batch, net.in_shape), report)
    assert report.largest_share_of_bound <= 1
    # NIR has no rounding to the grid, which flips single spikes near thresholds; a fault flips percents.
    assert report.forced_flips <= 1e-3 * report.compared_spikes
    assert report.compared_spikes > 1000
    nodes = read_nir(tmp_path / "model.nir").neurons
    assert sorted(nodes) == sorted(s.name.replace(".", "_") for s in net.state_spec())


def test_export_writes_and_compares(tmp_path: Path) -> None:
    """Through the whole exporter, and with exact numerics a refusal that says why."""
    net = KINDS["coupling, two blocks"]()
    file = export_network(net, FakeFrames(net), tmp_path, ["nir"])[0]
    assert [path.name for path in file.paths] == ["model.nir"]
    assert (file.parity.argmax_changed, file.parity.test_samples) == (0, 24)
    with pytest.raises(UsageError, match="nir has no rounding"):
        export_network(net, FakeFrames(net), tmp_path, ["nir"], numerics="exact")


def test_changed_predictions_are_told_and_not_judged(tmp_path: Path) -> None:
    """A stream off the grid decides otherwise where two classes are that close; the bounds hold, the file stays.

    The bias of one class is put between what network and file give for the sample in which they differ most.
    """
    net = KINDS["stream read by the head"]()
    head = [part for part in net.modules() if isinstance(part, torch.nn.Linear)][-1]
    with torch.no_grad():
        head.weight[0], head.bias[:] = 0.0, torch.tensor([0.0, 0.0, -99.0, -99.0, -99.0])
    frames = FakeFrames(net, 32)
    manifest = export_network(net, frames, tmp_path, ["nir"])[0].manifest
    answers = predictions(
        tmp_path / "model.nir", manifest, TrainedProbe(net), frames, lambda _: None
    )
    _, ours, theirs = next(answers)
    sample = int(np.argmax(np.abs(ours - theirs)[:, 1]))
    assert abs(ours[sample, 1] - theirs[sample, 1]) > 1e-6  # some roundings of float32
    with torch.no_grad():
        head.bias[1] -= float(ours[sample, 1] + theirs[sample, 1]) / 2
    file = export_network(net, frames, tmp_path, ["nir"])[0]
    assert not file.parity.rounds
    assert 1 <= file.parity.argmax_changed < 5
    assert file.parity.largest_share_of_bound <= 1
    assert file.paths[0].is_file()


@pytest.mark.parametrize("kind", list(_REFUSED))
def test_what_nir_cannot_say_is_refused(kind: str, tmp_path: Path) -> None:
    """The layer is named, and nothing is left behind."""
    with pytest.raises(ExportError, match=rf"(runs_\d|body\.\d\S*): .*{_REFUSED[kind]}"):
        write_nir(KINDS[kind](), tmp_path / "model.nir")
    assert list(tmp_path.iterdir()) == []


def test_spikes_are_those_of_the_equations() -> None:
    """An interpreter written from NIR's definition, with nothing of ours, fires as the network does."""
    net = KINDS["lif input not decayed"]()
    graph = nir_graph(net)
    trained = TrainedProbe(net)
    name = net.state_spec()[0].name.replace(".", "_")
    node = graph.nodes[name]
    assert np.all(node.r == 1.0)
    states, v, fired = trained.rest(2), np.array(node.v_reset, np.float64)[None], 0
    for x in events(8, 2, 1, net.in_shape):
        stem = net.stem.step(torch.from_numpy(x), [])[0].detach().double().numpy()
        v = v + DT / node.tau * (node.v_leak - v + node.r * stem)
        z = v > node.v_threshold
        v = np.where(z, node.v_reset, v)
        seen = trained.step(x, states)
        states = seen.states
        assert np.array_equal(z, seen.spikes[0] > 0.5)
        fired += int(z.sum())
    assert fired > 20


def test_a_graph_of_others_is_read() -> None:
    """Linear, LIF with a value per neuron, sum pooling and a skip connection, against the equations by hand."""
    tau, threshold = np.array([2e-4, 4e-4]), np.array([0.3, 0.6])
    zeros = np.zeros(2)
    graph = nir.NIRGraph(
        nodes={
            "in": nir.Input({"input": np.array([3])}),
            "w": nir.Linear(np.array([[1.0, 2.0, 0.0], [0.5, 0.0, 1.0]])),
            "lif": nir.LIF(
                tau=tau, r=np.array([1.0, 3.0]), v_leak=zeros + 0.1, v_threshold=threshold
            ),
            "skip": nir.Linear(np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])),
            "out": nir.Output({"output": np.array([2])}),
        },
        edges=[("in", "w"), ("w", "lif"), ("lif", "out"), ("in", "skip"), ("skip", "out")],
    )
    net = NirNet(graph)
    states, v = net.initial_states(1), zeros
    rng = np.random.default_rng(0)
    spikes = 0
    for _ in range(10):
        x = rng.random(3) / 4
        current = np.array([x[0] + 2 * x[1], 0.5 * x[0] + x[2]])
        v = v + DT / tau * (0.1 - v + np.array([1.0, 3.0]) * current)
        z = v > threshold
        v = np.where(z, 0.0, v)
        found = net.step(torch.from_numpy(x).float()[None], states)
        states = found.states
        assert np.allclose(found.output.numpy()[0], z + x[:2], atol=1e-6)
        assert np.allclose(states[0].numpy()[0], v, atol=1e-6)
        spikes += int(z.sum())
    assert spikes > 3


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A node without a counterpart, a cycle, an edge into nothing, and a damaged file."""
    ends = {"in": nir.Input({"input": np.array([2])}), "out": nir.Output({"output": np.array([2])})}
    one = np.ones(2)
    li = nir.LI(tau=one, r=one, v_leak=one)
    edges = [("in", "li"), ("li", "out")]
    with pytest.raises(ExportError, match="li: the NIR node LI"):
        NirNet(nir.NIRGraph(nodes={**ends, "li": li}, edges=edges))
    loop = nir.NIRGraph(
        nodes={**ends, "li": nir.IF(r=one, v_threshold=one)}, edges=[*edges, ("li", "li")]
    )
    with pytest.raises(ExportError, match=r"recurrent.*: (out, li|li, out) wait"):
        NirNet(loop)
    graph = nir_graph(KINDS["if hard"]())
    graph.edges.append(("nowhere", "output"))
    with pytest.raises(ExportError, match="from 'nowhere' to 'output'"):
        NirNet(graph)
    write_nir(KINDS["if hard"](), tmp_path / "model.nir")
    content = (tmp_path / "model.nir").read_bytes()
    (tmp_path / "cut.nir").write_bytes(content[: len(content) // 2])
    with pytest.raises(ExportError, match=r"cut\.nir is damaged"):
        read_nir(tmp_path / "cut.nir")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {"tau": np.zeros(2)},
            "n: a time constant of 0 s is shorter than the time step of 0.0001 s",
        ),
        ({"tau": np.array([2e-4, -1.0])}, "n: a time constant of -1 s"),
        ({"tau": np.array([2e-4, np.nan])}, "n: tau holds values that are not finite"),
        ({"r": np.array([1.0, np.inf])}, "n: r holds values that are not finite"),
        ({"v_threshold": np.array([1.0, np.nan])}, "n: v_threshold holds values"),
    ],
)
def test_values_that_silence_a_neuron_are_refused(
    changed: dict[str, np.ndarray], words: str, tmp_path: Path
) -> None:
    """They would give membranes that are not numbers, and never a spike; an infinite threshold is meant so."""
    ones, path = np.ones(2), tmp_path / "a.nir"
    usual = {"tau": np.array([1e-4, 2e-4]), "r": ones, "v_leak": 0 * ones, "v_reset": 0 * ones}
    usual["v_threshold"] = np.array([1.0, np.inf])
    ends = {"i": nir.Input({"input": np.array([2])}), "o": nir.Output({"output": np.array([2])})}
    for values in (usual, {**usual, **changed}):
        nodes = {**ends, "n": nir.LIF(**values)}
        nir.write(str(path), nir.NIRGraph(nodes=nodes, edges=[("i", "n"), ("n", "o")]))
        if values is usual:
            assert len(read_nir(path).neurons) == 1
    with pytest.raises(ExportError, match=words):
        read_nir(path)
