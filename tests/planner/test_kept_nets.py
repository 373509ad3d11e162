"""Deep models of the user's: made once, traced without most of their equal blocks, and the answer is that of all."""

import dataclasses
import random
from pathlib import Path

import pytest

from revedge.planner.setting import Setting
from revedge.planner.trace_child import about, trace
from revedge.user_code import absolute, digest

NETS = """
import revedge
from torch import nn
from revedge.neurons import LIFNode

class Block(nn.Module):
    def __init__(self, c, kernel=3):
        super().__init__()
        self.lif, self.bn = LIFNode(), nn.BatchNorm2d(c)
        self.conv = nn.Conv2d(c, c, kernel, padding=kernel // 2)
    def forward(self, x):
        return x + self.bn(self.conv(self.lif(x).flatten(0, 1))).unflatten(0, x.shape[:2])

class Net(nn.Module):
    def __init__(self, in_shape, num_classes, timesteps, depth=12, width=8):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(in_shape[0], width, 3, bias=False), nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(*self.made(depth, width))
        self.lif, self.fc = LIFNode(), nn.Linear(width, num_classes)
    def made(self, depth, width):
        return [Block(width) for _ in range(depth)]
    def forward(self, x):
        y = self.blocks(self.bn(self.stem(x.flatten(0, 1))).unflatten(0, x.shape[:2]))
        return self.fc(self.lif(y).mean((-2, -1))).mean(0)

class Deeper(Net):  # more outside of its blocks, too, where it is deeper
    def forward(self, x):
        for _ in self.blocks:
            x = nn.functional.gelu(x)
        return super().forward(x)

class Uneven(Net):
    def made(self, depth, width):
        return [Block(width, 5 if number == depth // 2 else 3) for number in range(depth)]

class Frozen(Net):
    def made(self, depth, width):
        return [Block(width).requires_grad_(number != depth // 2) for number in range(depth)]

class Tied(Net):
    def made(self, depth, width):
        return [Block(width)] * depth

def coupled(in_shape, num_classes, timesteps, depth=20):
    return revedge.create(
        "revsresnet16", in_shape=in_shape, num_classes=num_classes, timesteps=timesteps, depth=depth
    )
"""
STRATEGIES = ("store", "keep-conv", "keep-spikes", "reverse")
CUT = ("Net", "Deeper", "coupled")


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of the file with the networks."""
    path = tmp_path_factory.mktemp("kept") / "kept_user_nets.py"
    path.write_text(NETS)
    return str(path)


def setting_of(path: str, name: str, depth: int, strategy: str = "store") -> Setting:
    """Return a small training of a network in ``path``."""
    model = absolute(f"{path}:{name}")
    return Setting(
        model=model,
        model_options={"depth": depth},
        in_shape=(2, 12, 12),
        num_classes=4,
        timesteps=3,
        batch_size=4,
        micro_batch_size=4,
        strategy=strategy,
        model_sha256=digest(model),
    )


def drawn(setting: Setting, draw: random.Random) -> Setting:
    """Return ``setting``, saved and updated in another way."""
    micro = draw.choice([1, 4])
    tied = setting.model.endswith("Tied")
    return dataclasses.replace(
        setting,
        strategy=draw.choice(STRATEGIES),
        micro_batch_size=micro,
        slab_bytes=draw.choice([None, 1 << 14]),
        span_count=draw.choice([None, 2]),
        update_in_backward=micro == 4 and not tied and draw.random() < 0.5,
        optimizer=draw.choice(["adamw", "sgd"]),
    )


@pytest.mark.parametrize("name", [*CUT, "Uneven", "Frozen", "Tied"])
def test_a_kept_net_is_traced_to_the_byte(nets: str, name: str) -> None:
    """In any order of ways, what is told is what tracing all blocks of a fresh net tells."""
    draw = random.Random(name)
    for _ in range(4):
        depth = 20 if name == "coupled" else draw.randint(8, 14)
        setting = drawn(setting_of(nets, name, depth), draw)
        short, whole = trace(setting), trace(setting, thorough=True)
        if name in CUT and depth > 8:
            assert short["operations"] < whole["operations"]
        # Autograd adds gradients of a second micro-batch in place, or not; a last chunk is smaller than others.
        for count in ("operations", "moved_bytes", "calls"):
            assert short.pop(count) == pytest.approx(whole.pop(count), rel=0.1) or name in CUT
        assert short == whole


def test_a_deep_net_costs_what_a_shallow_one_does(nets: str) -> None:
    """Of a hundred equal blocks as many are run as of thirty, and none is forgotten for the next way."""
    for strategy in STRATEGIES:
        few, many = (trace(setting_of(nets, "Net", depth, strategy)) for depth in (30, 100))
        again = trace(setting_of(nets, "Net", 30, strategy))
        assert many["parameters"] > 3 * few["parameters"]
        assert again == trace(setting_of(nets, "Net", 30, strategy))
        assert again["operations"] == trace(setting_of(nets, "Net", 100, strategy))["operations"]
        work = dict.fromkeys(("operations", "calls", "moved_bytes"))  # also of making a net ready
        assert few | work == again | work


def test_a_net_is_made_once_for_all_ways(nets: str, tmp_path: Path) -> None:
    """The function of the user's is called again for another depth, and not for another strategy."""
    calls = tmp_path / "calls"
    path = Path(nets).with_name("counting.py")
    path.write_text(
        f"from kept_user_nets import Net as Other\n"
        f"def Net(*args, **options):\n"
        f"    with open({str(calls)!r}, 'a') as file: file.write('x')\n"
        f"    return Other(*args, **options)\n"
    )
    about(setting_of(str(path), "Net", 6))
    for strategy in STRATEGIES:
        trace(setting_of(str(path), "Net", 6, strategy))
    assert calls.read_text() == "x"
    trace(setting_of(str(path), "Net", 7))
    assert calls.read_text() == "xx"
