"""Modules of SpikingJelly, of snnTorch and of plain PyTorch as networks: the same spikes, and every format."""

import copy
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo import FakeFrames, digest

from revedge.engine import OverTime
from revedge.errors import ExportError
from revedge.export.modules import import_module
from revedge.export.probes import TrainedProbe
from revedge.export.writer import export_network
from revedge.neurons import IFNode, LateResetNode, LIFNode, ParametricLIFNode, reset_net

STEPS, BATCH, IN_SHAPE, CLASSES = 6, 3, (2, 8, 8), 5
Make = Callable[[], nn.Module]


def _recordings() -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.poisson(torch.full((STEPS, BATCH, *IN_SHAPE), 0.6), generator)


def _layers(make: Make, flat: nn.Module | None = None) -> list[nn.Module]:
    """Convolution, norm with statistics, and two neurons that fire, in front of a readout."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(8)
    nn.init.uniform_(norm.weight, 1.0, 2.0)
    nn.init.uniform_(norm.bias, 0.0, 0.6)
    assert norm.running_var is not None
    norm.running_var.fill_(0.4)
    first, second = nn.Conv2d(2, 8, 3, padding=1, bias=False), nn.Conv2d(8, 8, 3, padding=1)
    assert second.bias is not None
    nn.init.constant_(second.bias, 0.3)
    last = nn.Linear(8 * 16, CLASSES)
    return [first, norm, make(), nn.MaxPool2d(2), second, make(), flat or nn.Flatten(), last]


class InTime(nn.Module):
    """A chain of layers on [T, B, ...], folded for those that know no time."""

    def __init__(self, make: Make) -> None:
        super().__init__()
        self.conv1, self.norm, self.n1, self.pool, self.conv2, self.n2, _, self.fc = _layers(make)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean over time."""
        t, b = x.shape[:2]
        y = self.n1(self.norm(self.conv1(x.flatten(0, 1))).unflatten(0, (t, b)))
        y = self.conv2(self.pool(y.flatten(0, 1)))
        y = self.n2(y.view(t, b, *y.shape[1:]))
        return self.fc(y.flatten(2)).mean(0)


class Block(nn.Module):
    """x + norm(conv(neuron(x)))."""

    def __init__(self, make: Make) -> None:
        super().__init__()
        self.n, self.conv = make(), nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch."""
        y = self.norm(self.conv(self.n(x).flatten(0, 1)))
        return x + y.unflatten(0, (x.shape[0], x.shape[1]))


class Blocks(InTime):
    """The chain with two blocks in the middle."""

    def __init__(self, make: Make) -> None:
        super().__init__(make)
        self.blocks = nn.Sequential(Block(make), Block(make))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of every step."""
        t, b = x.shape[:2]
        y = self.norm(self.conv1(x.flatten(0, 1)))
        y = self.blocks(y.unflatten(0, (t, b)))
        y = self.pool(self.n2(y).flatten(0, 1)).flatten(1)
        return self.fc(y).unflatten(0, (t, b))


def _keep(mine: list[Tensor], _module: nn.Module, _given: Any, out: Any) -> None:
    mine.append(out if isinstance(out, Tensor) else out[0])


def _watch(module: nn.Module, kinds: tuple[type, ...]) -> list[list[Tensor]]:
    """Lists that each neuron's spikes will be added to, in order of execution."""
    seen: list[list[Tensor]] = []
    for neuron in [part for part in module.modules() if isinstance(part, kinds)]:
        mine: list[Tensor] = []
        neuron.register_forward_hook(partial(_keep, mine))
        seen.append(mine)
    return seen


def _same_spikes(module: nn.Module, ran: list[Tensor], logits: Tensor | None) -> None:
    """Every spike of every neuron and step; logits to rounding of sums of 128 terms."""
    net = import_module(module, in_shape=IN_SHAPE, timesteps=STEPS)
    trained, fired = TrainedProbe(net), 0.0
    states = trained.rest(BATCH)
    for t, frame in enumerate(_recordings()):
        found = trained.step(frame.numpy(), states)
        for ours, theirs in zip(found.spikes, ran, strict=True):
            assert torch.equal(torch.from_numpy(ours), theirs[t])
            fired += float(theirs[t].mean()) / len(ran) / STEPS
        if logits is not None:
            assert float((torch.from_numpy(found.logits) - logits[t]).abs().max()) < 1e-4
        states = found.states
    assert 0.03 < fired < 0.9


OURS: dict[str, Make] = {
    "if hard": lambda: IFNode(),
    "if soft": lambda: IFNode(v_reset=None, v_threshold=0.8),
    "lif": lambda: LIFNode(tau=1.7, v_reset=-0.2, decay_input=False),
    "plif soft": lambda: ParametricLIFNode(init_tau=1.4, v_reset=None),
}


@pytest.mark.parametrize("name", list(OURS))
def test_module_of_our_neurons(name: str) -> None:
    """A chain that is folded by hand gives the spikes that it gave, and its mean over time."""
    module = InTime(OURS[name]).eval()
    watched = copy.deepcopy(module)
    seen = _watch(watched, (IFNode, LIFNode, ParametricLIFNode))
    x = _recordings()
    with torch.no_grad():
        mean = watched(x)
        net = import_module(module, in_shape=IN_SHAPE, timesteps=STEPS)
        assert float((net(x) - mean).abs().max()) < 1e-4
    _same_spikes(module, [one[0] for one in seen], None)


def test_single_step_module_of_our_neurons() -> None:
    """Written for one step, it is the same network as written for all of them."""
    module = nn.Sequential(*_layers(lambda: LIFNode(tau=1.7, step_mode="s"))).eval()
    watched = copy.deepcopy(module)
    seen = _watch(watched, (LIFNode,))
    with torch.no_grad():
        logits = torch.stack([watched(frame) for frame in _recordings()])
    _same_spikes(module, [torch.stack(one) for one in seen], logits)


def test_blocks_become_runs() -> None:
    """Residual blocks are rounded to the grid of streams: outputs agree to that, and the export takes them."""
    module = Blocks(lambda: LIFNode(tau=1.7)).eval()
    net = import_module(module, in_shape=IN_SHAPE, timesteps=STEPS)
    assert [type(run).__name__ for run in net.runs()] == ["Feed", "Residual", "Feed"]
    assert len(net.runs()[1].branches) == 2  # type: ignore[arg-type]
    with torch.no_grad():
        expected = copy.deepcopy(module)(_recordings()).mean(0)
        found = net(_recordings())
    # A value that is 2**-15 off moves a spike where it lies that close to the threshold: none does here.
    assert float((found - expected).abs().max()) < 1e-3


def test_import_leaves_the_module_as_it_is() -> None:
    """Weights, modes and attributes; and what is trained later does not move the network."""
    module = InTime(OURS["lif"]).train()
    before = digest(module)  # type: ignore[arg-type]
    net = import_module(module, in_shape=IN_SHAPE, timesteps=STEPS)
    assert digest(module) == before  # type: ignore[arg-type]
    weight = next(net.parameters()).clone()
    with torch.no_grad():
        next(module.parameters()).add_(1.0)
    assert torch.equal(next(net.parameters()), weight)


@pytest.mark.parametrize("late", [False, True])
def test_imported_module_is_written_to_every_format(late: bool, tmp_path: Path) -> None:
    """Every file passes its comparison with the imported network; NIR does not know the late reset."""
    layers = _layers(
        lambda: (
            LateResetNode(0.8, step_mode="s")
            if late
            else LIFNode(tau=2.0, decay_input=False, step_mode="s")
        )
    )
    layers[3] = nn.AvgPool2d(2)  # NIR has no other
    module = nn.Sequential(*layers)
    net = import_module(module, in_shape=IN_SHAPE, timesteps=4)
    formats = ["torchscript", "pt2", "onnx", "onnx-scan", "onnx-blocks", "onnx-unrolled"]
    try:
        import nir  # type: ignore[import-not-found,unused-ignore]  # noqa: F401
    except ModuleNotFoundError:
        pass
    else:
        formats += [] if late else ["nir"]
    files = export_network(net, FakeFrames(net), tmp_path, formats)
    assert [file.format for file in files] == formats
    assert all(file.parity.argmax_changed == 0 for file in files)


class Loop(nn.Module):
    """A loop over time in the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.n = nn.Linear(128, 5), LIFNode(step_mode="s")

    def forward(self, x: Tensor) -> Tensor:
        """Add up."""
        return torch.stack([self.n(self.fc(frame.flatten(1))) for frame in x])


class Both(nn.Module):
    """A sum that is no residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 5), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Add."""
        return self.a(x) + self.b(x)


REFUSED: dict[str, tuple[Make, str]] = {
    "a layer that nobody knows": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(128, 5), nn.Sequential(nn.PReLU())),
        "2.0: PReLU",
    ),
    "a loop": (Loop, "Loop: its forward"),
    "a sum": (Both, "b does not read"),
    "one output per place": (lambda: nn.Sequential(nn.Conv2d(2, 8, 3)), "step gives"),
    "other frames": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten()), "do not fit"),
    "flattened samples": (
        lambda: nn.Sequential(nn.Linear(8, 8), LIFNode(), nn.Flatten(1), nn.Linear(64, 5)),
        r"2 is given \[T, B",
    ),
}


@pytest.mark.parametrize("what", list(REFUSED))
def test_what_cannot_be_said_is_named(what: str) -> None:
    """One line with the layer and the reason."""
    make, message = REFUSED[what]
    with pytest.raises(ExportError, match=message):
        import_module(make(), in_shape=IN_SHAPE, timesteps=STEPS)


def _spikingjelly() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own imports warn
        return pytest.importorskip(
            "spikingjelly.activation_based", reason="SpikingJelly is not installed"
        )


_SJ: dict[str, dict[str, Any]] = {
    "IFNode hard": {"v_threshold": 0.7},
    "IFNode soft": {"v_reset": None, "detach_reset": True},
    "LIFNode hard": {"tau": 1.6, "v_threshold": 0.5},
    "LIFNode to -0.2": {"tau": 3.0, "v_reset": -0.2, "decay_input": False, "detach_reset": True},
    "LIFNode soft": {"tau": 1.6, "v_reset": None, "v_threshold": 0.5},
    "LIFNode soft, input whole": {"tau": 2.5, "v_reset": None, "decay_input": False},
    "ParametricLIFNode hard": {"init_tau": 1.5, "v_threshold": 0.6},
    "ParametricLIFNode soft": {"init_tau": 2.5, "v_reset": None, "decay_input": False},
}


@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize("name", list(_SJ))
def test_spikes_are_those_of_spikingjelly(name: str, mode: str) -> None:
    """IF, LIF and PLIF, each reset, in both step modes; the surrogate does not matter."""
    _spikingjelly()
    from spikingjelly.activation_based import (  # pyright: ignore[reportMissingImports]
        functional,
        layer,
        neuron,
        surrogate,
    )

    kind = getattr(neuron, name.split()[0])
    plain = _layers(lambda: kind(surrogate_function=surrogate.LeakyKReLU(), **_SJ[name]))
    module = nn.Sequential(
        layer.SeqToANNContainer(*plain[:2]), plain[2], layer.MaxPool2d(2), plain[4], plain[5]
    )
    if mode == "s":
        module = nn.Sequential(*plain)
    else:
        module[3] = layer.Conv2d(8, 8, 3, padding=1)
        module[3].load_state_dict(plain[4].state_dict())
        module.append(layer.Flatten()).append(layer.Linear(8 * 16, CLASSES))
        module[6].load_state_dict(plain[7].state_dict())
    functional.set_step_mode(module, mode)
    module.eval()
    seen = _watch(module, (kind,))
    x = _recordings()
    with torch.no_grad():
        logits = module(x) if mode == "m" else torch.stack([module(frame) for frame in x])
    ran = [one[0] if mode == "m" else torch.stack(one) for one in seen]
    functional.reset_net(module)
    for part in module.modules():
        part._forward_hooks.clear()
    _same_spikes(module, ran, logits)


def test_what_spikingjelly_has_more_is_named() -> None:
    """Another neuron, by its place."""
    _spikingjelly()
    from spikingjelly.activation_based import neuron  # pyright: ignore[reportMissingImports]

    module = nn.Sequential(nn.Flatten(), nn.Linear(128, 5), neuron.QIFNode())
    with pytest.raises(ExportError, match="2: the neuron QIFNode"):
        import_module(module, in_shape=IN_SHAPE, timesteps=STEPS)


def _snntorch() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own imports warn
        return pytest.importorskip("snntorch", reason="snnTorch is not installed")


_SNN: dict[str, dict[str, Any]] = {
    "zero": {"beta": 0.6, "reset_mechanism": "zero", "threshold": 0.7},
    "zero, at once": {"beta": 0.8, "reset_mechanism": "zero", "reset_delay": False},
    "learned": {
        "beta": 0.5,
        "reset_mechanism": "zero",
        "learn_beta": True,
        "learn_threshold": True,
    },
    "no leak": {"beta": 1.0, "reset_mechanism": "zero"},
    "soft": {"beta": 1.0, "reset_mechanism": "subtract", "threshold": 0.9},
    "as it is by default": {"beta": 0.9},
    "subtract, strong": {"beta": 0.7, "threshold": 0.3},  # often more than two thresholds
    "subtract, learned": {"beta": 0.8, "learn_beta": True, "learn_threshold": True},
}


@pytest.mark.parametrize("hidden", [True, False])
@pytest.mark.parametrize("name", list(_SNN))
def test_spikes_are_those_of_snntorch(name: str, hidden: bool) -> None:
    """`Leaky` with the reset to zero, and by subtraction; in a Sequential, and held by `OverTime`."""
    leaky = _snntorch().Leaky
    if hidden:
        module: nn.Module = nn.Sequential(
            *_layers(lambda: leaky(init_hidden=True, **_SNN[name]))
        ).eval()
        watched = copy.deepcopy(module)
        seen = _watch(watched, (leaky,))
        with torch.no_grad():
            logits = torch.stack([watched(frame) for frame in _recordings()])
        ran = [torch.stack(one) for one in seen]
    else:
        module = InTime(lambda: OverTime(leaky(**_SNN[name]))).eval()
        watched = copy.deepcopy(module)
        seen = _watch(watched, (OverTime,))
        with torch.no_grad():
            watched(_recordings())
        ran, logits = [one[0] for one in seen], None
    _same_spikes(module, ran, logits)


def test_what_snntorch_has_more_is_named() -> None:
    """Its reset by subtraction without the delay, none at all, a second state: other neurons than any here."""
    snntorch = _snntorch()
    for neuron, reason in (
        (snntorch.Leaky(beta=0.9, init_hidden=True, reset_delay=False), "reset_delay=False"),
        (snntorch.Leaky(beta=0.9, init_hidden=True, reset_mechanism="none"), "reset .'none'"),
        (snntorch.Synaptic(alpha=0.9, beta=0.8, init_hidden=True), "Synaptic"),
    ):
        module = nn.Sequential(nn.Flatten(), nn.Linear(128, 5), neuron)
        with pytest.raises(ExportError, match=f"2: .*{reason}"):
            import_module(module, in_shape=IN_SHAPE, timesteps=STEPS)


def test_reset_after_import() -> None:
    """A module that has run before is imported at rest."""
    module = nn.Sequential(*_layers(lambda: LIFNode(tau=1.7, step_mode="s"))).eval()
    with torch.no_grad():
        module(_recordings()[0])
    net = import_module(module, in_shape=IN_SHAPE, timesteps=STEPS)
    reset_net(module)
    fresh = import_module(module, in_shape=IN_SHAPE, timesteps=STEPS)
    with torch.no_grad():
        assert torch.equal(net(_recordings()), fresh(_recordings()))
