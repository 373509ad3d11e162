"""Models by the place of their code: what is called, what comes of it, and every mistake in one line."""

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import revedge
from revedge.engine import update_in_backward
from revedge.engine.adopt.forward import runs_of
from revedge.errors import UsageError
from revedge.models.user_net import UserNet
from revedge.neurons import LIFNode
from revedge.user_code import absolute, digest, load, require_unchanged

NETS = """
from revedge.engine import Branch, Residual, Unit
from helper import CLASSES

class Net(nn.Module):
    def __init__(self, in_shape, num_classes, timesteps, width=4, depth=2, per_step=False):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(in_shape[0], width, 3, bias=False), nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(*[Block(width) for _ in range(depth)])
        self.lif, self.fc, self.per_step = LIFNode(), nn.Linear(width, num_classes), per_step
    def forward(self, x):
        y = self.bn(self.stem(x.flatten(0, 1))).unflatten(0, x.shape[:2])
        y = self.fc(self.lif(self.blocks(y)).mean((-2, -1)))
        return y if self.per_step else y.mean(0)

def engine(in_shape, num_classes, timesteps, **options):
    create = __import__("revedge").create
    return create("vgg5", in_shape=in_shape, num_classes=num_classes, timesteps=timesteps, **options)

def few(in_shape): ...
def none(in_shape, num_classes, timesteps): return "net"
def raises(in_shape, num_classes, timesteps): raise IndexError("no such layer")
class Wrong(Net):
    def forward(self, x): return super().forward(x)[:, :2]
class Half(Net):
    def forward(self, x): return super().forward(x).expand(2, -1, -1)
class Nets:
    small = Net
class Looks(Net):
    def forward(self, x):
        if x.dim() != 5:
            raise ValueError(x.shape)
        return super().forward(x)
class Own(Net):
    def __init__(self, *sizes):
        super().__init__(*sizes, depth=0)
        unit = Unit(neuron=LIFNode(), op=nn.Conv2d(4, 4, 3, padding=1))
        self.blocks = Residual([Branch([unit], norm=nn.BatchNorm2d(4))])
def _hidden(in_shape): ...
three = 3
"""
SIZES: dict[str, Any] = {"in_shape": (2, 8, 8), "num_classes": 3, "timesteps": 4}
# Float32 rounding of sums of up to 100 terms, through two norms: apply takes them in another order.
CLOSE = 1e-4


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, residual_block: str) -> Path:
    """Write the file in the current folder, with what it imports beside it; what is imported is forgotten after."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("nets", "helper", "user_model_nets", "broken", "needy"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(residual_block + NETS)
    (tmp_path / "helper.py").write_text("CLASSES = 3\n")
    return tmp_path / "nets.py"


def gradients(net: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Return the gradients of a loss."""
    net.zero_grad()
    net(x).square().sum().backward()
    return [p.grad.clone() for p in net.parameters() if p.grad is not None]


@pytest.mark.parametrize("where", ["nets", "nets.py"])
def test_a_module_is_put_under_apply(nets: Path, where: str) -> None:
    """It keeps its state_dict, gives its own logits and gradients, the same bits under every strategy."""
    torch.manual_seed(0)
    net = revedge.create(f"{where}:Net", **SIZES, depth=3)
    assert isinstance(net, UserNet)
    assert len(net.runs()) == 3
    assert list(net.state_dict()) == list(net.module.state_dict())
    x = torch.rand(4, 2, 2, 8, 8)
    found = {}
    for strategy in ("store", "keep-conv", "keep-spikes", "reverse"):
        net.set_strategy(strategy)
        found[strategy] = gradients(net, x)
        assert all(map(torch.equal, found[strategy], found["store"]))
        assert strategy in str(net.report)
    logits = net(x)
    plain = net.plain()
    assert torch.allclose(plain(x), logits, atol=CLOSE)
    assert load(f"{where}:Net") is load(f"{where}:Nets.small") is type(plain)


def test_a_changed_file_is_imported_again(nets: Path) -> None:
    """Until then it is imported once, so that its classes stay what they are."""
    before = load("nets.py:Net")
    assert load(f"{nets}:Net") is before
    changed_ns = nets.stat().st_mtime_ns + 1
    nets.write_text(nets.read_text().replace("width=4", "width=5"))
    os.utime(nets, ns=(changed_ns, changed_ns))
    net = revedge.create("nets.py:Net", **SIZES)
    assert isinstance(net, UserNet)
    assert type(net.module) is not before
    assert net.module.get_parameter("stem.weight").shape[0] == 5


def test_the_config_makes_it_again(nets: Path) -> None:
    """A file's path in it is absolute, so that another folder may be the current one."""
    net = revedge.create("nets.py:Net", **SIZES, width=6, per_step=True, strategy="store")
    assert net.config["name"] == f"{nets}:Net"
    again = revedge.create(**net.config)
    again.load_state_dict(net.state_dict())
    assert again.config == net.config
    x = torch.rand(4, 2, 2, 8, 8)
    assert torch.equal(again.eval()(x), net.eval()(x))
    mean = revedge.create("nets.py:Net", **SIZES, width=6)
    mean.load_state_dict(net.state_dict())
    assert torch.equal(net(x), mean.eval()(x))  # of logits per step, the mean


def test_images_are_given_at_every_step(nets: Path) -> None:
    """A static net shows its module the image T times."""
    net = revedge.create("nets:Net", **SIZES, static=True).eval()
    image = torch.rand(2, 2, 8, 8)
    moving = revedge.create("nets:Net", **SIZES).eval()
    moving.load_state_dict(net.state_dict())
    assert torch.equal(net(image), moving(image.expand(4, -1, -1, -1, -1)))


def test_a_net_of_the_engine_is_used_as_it_is(nets: Path) -> None:
    """It has its runs, and steps."""
    net = revedge.create("nets:engine", **{**SIZES, "in_shape": (2, 16, 16)}, width=4)
    assert not isinstance(net, UserNet)
    assert net.config["name"] == "nets:engine"
    assert net.state_spec()


def test_a_module_may_look_at_its_input_and_hold_runs_of_its_own(nets: Path) -> None:
    """The number of axes is known while it is traced; runs that it holds get strategies and sizes like the others."""
    looks = revedge.create("nets:Looks", **SIZES)
    assert isinstance(looks, UserNet)
    assert looks.report.left == ()
    net = revedge.create("nets:Own", **SIZES, strategy="keep-spikes")
    net.set_slab_bytes(1024)
    assert isinstance(net, UserNet)
    (own,) = (run for run in net.runs() if run is net.module.blocks)
    assert (own.strategy, own.slab_bytes) == ("keep-spikes", 1024)


def test_settings_reach_every_run(nets: Path) -> None:
    """Those of programs that are made later, for evaluation, too; a check outlives updates in the backward pass."""
    net = revedge.create("nets:Net", **SIZES)
    net.set_strategy(["store", "keep-spikes", "keep-conv"])
    net.set_slab_bytes(1024)
    net.set_span_count(2, membranes=1)
    net.set_chunk_bytes(4096)
    net.set_check("checksum")
    update_in_backward(net, lambda parameter, gradient: None)
    net.eval()(torch.rand(4, 2, 2, 8, 8))
    assert isinstance(net, UserNet)
    assert net._applied is not None
    programs = [program for each in net._applied._forwards for program in each.programs()]
    made = [run for program in programs for run in runs_of(program)]
    assert len(made) >= 6
    for run in made:
        assert (run.slab_bytes, run.chunk_bytes) == (1024, 4096)
        assert (run.span_count, run.membrane_count) == (2, 1)
        assert run.check == "checksum"
        assert run.update is not None
    assert [run.strategy for run in made[-3:]] == ["store", "keep-spikes", "keep-conv"]
    with pytest.raises(UsageError, match="2 strategies were given for 3 runs"):
        net.set_strategy(["store", "store"])


def test_single_steps_are_refused(nets: Path) -> None:
    """Only the module knows what it does in one."""
    with pytest.raises(UsageError, match="single steps"):
        revedge.create("nets:Net", **SIZES).state_spec()


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("nowhere:f", {}, "no module 'nowhere' in .* name the file"),
        ("nowhere.py:f", {}, "no file .*/nowhere.py"),
        ("nets:nothing", {}, "nets has no 'nothing'; it has Block"),
        ("nets:three", {}, "three is int, not a function"),
        ("nets:a b", {}, "not understood; name it as module:function"),
        (":f", {}, "not understood"),
        ("nets:few", {}, r"takes \(in_shape\), but is called with \(in_shape, num_classes, timesteps\)"),
        ("nets:Net", {"heads": 2}, "takes no heads; beside .* it takes width, depth, per_step"),
        ("nets:none", {}, "returns str, not a torch.nn.Module"),
        ("nets:raises", {}, "building it raised IndexError: no such layer"),
        ("broken:f", {}, "importing it raised SyntaxError"),
        ("needy:f", {}, "importing it raised ModuleNotFoundError: No module named 'not_there'"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(nets: Path, name: str, options: dict[str, Any], words: str) -> None:
    """Each says which model, what is wrong, and what to do."""
    (nets.parent / "broken.py").write_text("x = (\n")
    (nets.parent / "needy.py").write_text("import not_there\n")
    with pytest.raises(UsageError, match=words) as caught:
        revedge.create(name, **SIZES, **options)
    assert "\n" not in str(caught.value)
    assert "_hidden" not in str(caught.value)


def test_spikingjelly_s_neurons_begin_at_rest(nets: Path) -> None:
    """In every forward, whether it is in runs or not, and are left there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own imports warn
        pytest.importorskip("spikingjelly.activation_based.neuron", reason="is not installed")
    for name in ("nets", "helper"):
        sys.modules.pop(name, None)
    text = nets.read_text().replace(
        "from revedge.neurons import LIFNode",
        "from spikingjelly.activation_based.neuron import LIFNode as Node\n"
        "def LIFNode(): return Node(step_mode='m', store_v_seq=len(CLASSES) > 1)",
    )
    nets.write_text(text)
    x = torch.rand(4, 2, 2, 8, 8)
    for classes in ("'1'", "'12'"):  # the second is left on ordinary autograd
        (nets.parent / "helper.py").write_text(f"CLASSES = {classes}\n")
        sys.modules.pop("helper", None)
        os.utime(nets, ns=(len(classes), len(classes)))
        net = revedge.create("nets.py:Net", **SIZES).eval()
        assert isinstance(net, UserNet)
        assert bool(net.report.left) == (len(classes) > 3)
        assert torch.equal(net(x), net(x))
        assert [each.v for each in net.module.modules() if hasattr(each, "v")] == [0.0] * 3


@pytest.mark.parametrize(("name", "shape"), [("Wrong", r"\(2, 2\)"), ("Half", r"\(2, 2, 3\)")])
def test_a_wrong_output_is_told_where_it_is_seen(nets: Path, name: str, shape: str) -> None:
    """Both shapes are named; logits of half of the steps are not those of all. Neurons are left at rest."""
    net = revedge.create(f"nets:{name}", **SIZES)
    with pytest.raises(UsageError, match=rf"it gives {shape}; it has to give logits \(2, 3\)"):
        net(torch.rand(4, 2, 2, 8, 8))
    assert isinstance(net, UserNet)
    assert [each.v for each in net.module.modules() if isinstance(each, LIFNode)] == [None] * 3


@pytest.mark.parametrize(
    "words", ["DefaultCPUAllocator: can't allocate memory", "CUDA error: out of memory"]
)
def test_no_memory_while_building_is_no_mistake(
    words: str, nets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trainer has to know such an error by its kind."""

    def full(*_: object) -> None:
        raise RuntimeError(words)

    monkeypatch.setattr(load("nets:Net"), "__init__", full)
    monkeypatch.setattr("revedge.models.user_model._check_signature", lambda *_: None)
    with pytest.raises(RuntimeError, match="memory") as caught:
        revedge.create("nets:Net", **SIZES)
    assert not isinstance(caught.value, UsageError)


def test_options_of_registry_names_stay_known_ones() -> None:
    """A misspelled argument of `create` is an error of Python, as ever."""
    with pytest.raises(TypeError, match="widht"):
        revedge.create("vgg5", **SIZES, widht=3)


def test_the_digest_follows_imports_and_runs_nothing(nets: Path) -> None:
    """It changes with the file and with what that imports from beside it, with nothing else; both names have one."""
    before = digest("nets:Net")
    assert before is not None
    assert before == digest("nets.py:few") == digest(f"{nets}:Net")
    (nets.parent / "other.py").write_text("raise SystemExit")
    assert digest("nets:Net") == before
    (nets.parent / "helper.py").write_text("CLASSES = 4\n")
    changed = digest("nets:Net")
    assert changed != before
    assert "nets" not in sys.modules
    assert "helper" not in sys.modules
    require_unchanged("nets:Net", changed)
    require_unchanged("nets:Net", None)
    with pytest.raises(UsageError, match="changed since it was planned"):
        require_unchanged("nets:Net", before)


def test_the_digest_of_a_package_has_all_of_it(nets: Path) -> None:
    """Relative imports and the packages around a module belong to it; installed code and torch do not."""
    package = nets.parent / "pack"
    (package / "inner").mkdir(parents=True)
    files = [package / "__init__.py", package / "inner" / "__init__.py", package / "inner" / "net.py",
             package / "parts.py", package / "more.py"]  # fmt: skip
    for file in files:
        file.write_text("")
    files[2].write_text("import torch\nfrom ..parts import part\nfrom pack import more\n")
    known = {digest("pack.inner.net:f")}
    for file in files:
        file.write_text(file.read_text() + "# changed\n")
        known.add(digest("pack.inner.net:f"))
    assert len(known) == 1 + len(files)


def test_the_digest_leaves_out_what_is_not_the_users(
    nets: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of installed code its own package alone is read, of revedge nothing, and of what does not parse no import."""
    site = tmp_path_factory.mktemp("site")
    monkeypatch.syspath_prepend(str(site))
    (site / "lib").mkdir()
    for file in ("lib/__init__.py", "lib/part.py", "beside.py"):
        (site / file).write_text("")
    (site / "lib/net.py").write_text("import beside\nfrom lib import part\n")
    before = digest("lib.net:f")
    (site / "beside.py").write_text("# changed\n")
    assert digest("lib.net:f") == before
    (site / "lib/part.py").write_text("# changed\n")
    assert digest("lib.net:f") != before
    before = digest("nets:Net")
    (nets.parent / "revedge").mkdir()
    (nets.parent / "revedge" / "neurons.py").write_text("# a checkout\n")
    assert digest("nets:Net") == before
    (nets.parent / "broken.py").write_text("import helper\nx = (\n")
    broken = digest("broken:f")
    (nets.parent / "helper.py").write_text("CLASSES = 4\n")
    assert digest("broken:f") == broken


def test_names_of_the_registry_are_no_code(nets: Path) -> None:
    """They have no digest and no path."""
    assert digest("vgg5") is None
    assert absolute("vgg5") == "vgg5"
    assert absolute("nets:Net") == "nets:Net"
    assert absolute("sub/nets.py:Net") == f"{nets.parent}/sub/nets.py:Net"
