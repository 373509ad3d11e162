"""`apply` on nets that know nothing of the engine: the same gradients, a report, and the way back."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from apply_nets import STYLES, Block, Coupled, Residual, X, assert_close, bits, make, step
from torch import Tensor, nn

from revedge import models
from revedge.engine import STRATEGIES, apply
from revedge.errors import UsageError
from revedge.neurons import LIFNode, reset_net

BLOCKS = {"residual": (Residual, 3), "coupled": (Coupled, 2)}


@pytest.mark.parametrize("style", STYLES)
def test_every_strategy_gives_the_same_bits_and_those_of_autograd_to_rounding(style):
    """Gradients and running statistics, with all neurons in runs."""
    plain = net = make(style)
    expected = step(plain)
    found, gradients = set(), {}
    for strategy in STRATEGIES:
        net = make(style)
        applied = apply(net, strategy, check="checksum")
        gradients = step(net)
        found.add(bits(net, gradients))
        assert sum(run.neurons for run in applied.report.runs) == _neurons(net)
        assert applied.report.left == ()
        assert style not in BLOCKS or applied.report.runs[0].first == "stem"
    assert len(found) == 1
    assert_close(gradients, expected)
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(dict(net.named_buffers())[name], buffer, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("style", BLOCKS)
def test_streams_go_on_the_grid_only_on_request(style):
    """With grid=True blocks become one reversible run, equal to the same net with the rounding written out."""
    kind, count = BLOCKS[style]
    torch.manual_seed(0)
    expected = step(kind(rounded=True).train())
    found, gradients, texts = set(), {}, []
    for strategy in STRATEGIES:
        net = make(style)
        applied = apply(net, strategy, grid=True, check="checksum")
        gradients = step(net)
        found.add(bits(net, gradients))
        texts.append(applied.report)
    assert len(found) == 1
    assert_close(gradients, expected)
    report = texts[-1]
    runs = [run for run in report.runs if run.kind != "feed"]
    assert [(run.kind, run.blocks) for run in runs] == [
        ("residual" if style == "residual" else "coupling", count)
    ]
    assert "rounded to multiples of 2**-14" in str(report)
    assert "at most 2**-15 per addition" in str(report)

    cautious = apply(make(style), "reverse")
    assert {run.kind for run in cautious.report.runs} == {"feed"}
    assert "grid=True" in str(cautious)


def _neurons(net: nn.Module) -> int:
    return sum(hasattr(module, "v_threshold") for module in net.modules())


def test_the_model_stays_the_users():
    """Names, parameters and structure are untouched; undo leaves nothing behind."""
    net = make("residual")
    keys, text = list(net.state_dict()), repr(net)
    expected = step(net)
    net = make("residual")
    attributes = set(net.__dict__)
    before = {name: id(p) for name, p in net.named_parameters()}
    applied = apply(net, "reverse", grid=True)
    step(net)
    assert list(net.state_dict()) == keys
    assert {name: id(p) for name, p in net.named_parameters()} == before
    assert repr(net) == text
    applied.undo()
    assert set(net.__dict__) == attributes
    assert all(lif.v is None for lif in net.modules() if isinstance(lif, LIFNode))
    net.load_state_dict(make("residual").state_dict())
    again = step(net)
    assert all(torch.equal(again[name], expected[name]) for name in expected)


def test_an_optimizer_trains_as_ever():
    """A few steps of AdamW and clipping follow those of the plain net."""
    losses = {}
    for strategy in (None, "keep-spikes"):
        net = make("trunk")
        if strategy:
            apply(net, strategy)
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
        losses[strategy] = []
        for _ in range(4):
            found = step(net)
            norm = nn.utils.clip_grad_norm_(net.parameters(), 0.5)
            optimizer.step()
            losses[strategy] += [float(found["loss-out"].square().sum()), float(norm)]
    # The first step agrees to rounding; afterwards AdamW divides small gradients by their own size.
    torch.testing.assert_close(
        torch.tensor(losses["keep-spikes"]), torch.tensor(losses[None]), rtol=1e-3, atol=0
    )


def test_a_copy_is_independent():
    """deepcopy and pickle give a model under apply that reads its own weights."""
    net = make("residual")
    apply(net, "keep-spikes")
    expected = step(net)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert not [p for p in other.parameters() if any(p is q for q in net.parameters())]
        with torch.no_grad():
            other.fc.weight.zero_()
            other.fc.bias.fill_(3.0)
        reset_net(other)
        assert torch.equal(other(X), torch.full((2, 5), 3.0))
    reset_net(net)
    net.train()
    assert torch.equal(step(net)["loss-out"], expected["loss-out"])


def test_assigned_weights_are_seen():
    """load_state_dict(assign=True) replaces parameters; the next forward uses the new ones."""
    net = make("residual")
    apply(net, "keep-spikes")
    step(net)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    state["fc.weight"], state["fc.bias"] = torch.zeros(5, 6), torch.ones(5)
    net.load_state_dict(state, assign=True)
    found = step(net)
    assert torch.equal(found["loss-out"], torch.ones(2, 5))
    assert float(found["fc.bias"].abs().sum()) > 0


def test_modes_and_changes_are_followed():
    """Training, evaluation, a new module and a changed attribute each give what the plain net gives."""
    net, plain = make("residual"), make("residual")
    applied = apply(net, "reverse")
    for change in (
        lambda n: n.eval(),
        lambda n: n.train(),
        _replace_head,
        lambda n: n.blocks[1].bn1.eval(),
    ):
        change(net)
        change(plain)
        assert_close(step(net), step(plain))
    assert "fc" in applied.report.runs[-1].last


def _replace_head(net: Any) -> None:
    torch.manual_seed(9)
    net.fc = nn.Linear(6, 5)


def test_inference_needs_no_tape():
    """Under no_grad the net gives the same and nothing that holds memory."""
    net, plain = make("trunk").eval(), make("trunk").eval()
    apply(net, "reverse")
    with torch.no_grad():
        found = net(X)
    assert not found.requires_grad
    torch.testing.assert_close(found, plain(X).detach(), rtol=1e-5, atol=1e-5)


def test_a_missing_reset_is_noticed():
    """Under apply membranes are not carried on: neither silently from call to call, nor to who reads them."""
    net = make("residual")
    apply(net)
    net(X)
    with pytest.raises(UsageError, match="call reset_net"):
        net(X)
    with pytest.raises(UsageError, match="membrane"):
        net.lif.v.mean()
    with pytest.raises(UsageError, match="membrane"):
        net.lif(X)
    reset_net(net)
    net(X)


def test_strategies_one_per_run():
    """A list gives each run its own; a list of another length is refused, and nothing is changed."""
    net = make("residual")
    count = len(apply(net, "store").report.runs)
    names = [["store", "keep-conv", "keep-spikes"][index % 3] for index in range(count)]
    applied = apply(net, names)
    assert [run.strategy for run in applied.report.runs] == names
    digest = bits(net, step(net))
    other = make("residual")
    apply(other, "reverse")
    assert bits(other, step(other)) == digest
    with pytest.raises(UsageError, match=f"2 strategies were given for {count} runs"):
        apply(make("residual"), ["store", "store"])
    with pytest.raises(UsageError, match="not known"):
        apply(net, "magic")
    with pytest.raises(UsageError, match="no submodule"):
        apply(net, leave=["nothing"])


def test_a_net_of_the_engine_gets_strategies():
    """SpikingNet has runs already: apply sets them, undo sets them back."""
    net = models.create(
        "ms-resnet10", in_shape=(2, 12, 12), num_classes=5, timesteps=3, width=4, strategy="store"
    )
    applied = apply(net, "keep-spikes")
    assert {run.strategy for run in net.runs()} == {"keep-spikes"}
    assert applied.report.runs[0].first == "stem"
    applied.undo()
    assert {run.strategy for run in net.runs()} == {"store"}


def test_the_report_prints():
    """What became which run with which strategy, what was left and why."""
    torch.manual_seed(0)
    net = nn.Sequential(Block(4), nn.ReLU(), LIFNode(step_mode="s"))
    applied = apply(net, "keep-spikes")
    assert str(applied) == (
        "Sequential: 1 runs hold 2 neurons; 1 left on ordinary autograd\n"
        "  run  modules         what             strategy\n"
        "  1    0.lif1 to 0.bn2  feed of 3 units  keep-spikes\n"
        "  left: 2: LIFNode: it runs step by step (step_mode 's'); a run needs step_mode 'm'\n"
        "  note: 1 more blocks could have their input rebuilt instead of kept: grid=True allows it, and changes the "
        "forward by at most 2**-15 per addition"
    ).replace("modules         what", "modules          what")


def test_less_is_kept():
    """What one training step has alive at its peak falls as the strategy says, and below the plain net's."""
    from revedge.planner.tracer import StorageTracker

    peaks: dict[str, float] = {}
    # The tracker follows storages that hold no numbers.
    x = torch.rand(8, 4, 16, 16, 16, device="meta")
    for strategy in ("plain", "store", "keep-conv", "keep-spikes", "reverse"):
        torch.manual_seed(0)
        net = nn.Sequential(*[Block(16) for _ in range(8)]).train().to("meta")
        if strategy != "plain":
            apply(net, strategy, grid=strategy == "reverse")
        with StorageTracker(page_bytes=4096, native_kernels=True) as tracker:
            net(x).sum().backward()
        peaks[strategy] = (tracker.peak_bytes - tracker.peak_workspace_bytes) / (x.numel() * 4)
    # In streams: a block under keep-spikes keeps its input and two neurons' bits, under reverse one neuron's; then
    # there is what the block at hand needs to be redone: output, gradient, convolution in and out, and rounding up.
    assert peaks["keep-spikes"] < 8 * (1 + 2 / 32) + 6
    assert peaks["reverse"] < 8 * (1 / 32) + 8
    assert peaks["keep-spikes"] < peaks["keep-conv"] < peaks["store"] < peaks["plain"]


def test_torch_save_of_weights_is_unchanged():
    """What is saved under apply loads into a plain net."""
    net, file = make("trunk"), io.BytesIO()
    apply(net)
    step(net)
    torch.save(net.state_dict(), file)
    file.seek(0)
    plain = make("trunk")
    plain.load_state_dict(torch.load(file, weights_only=True))


def test_a_bare_tensor_function_stays_autograd():
    """A model without neurons is left as it was."""
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    applied = apply(net)
    assert applied.report.runs == ()
    assert "forward" not in net.__dict__
    x: Tensor = torch.ones(2, 4)
    assert net(x).requires_grad
