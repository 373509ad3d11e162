"""Models of the user's, planned: the trace of their own forward, what a search may do with them, and their errors."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from revedge.cli.main import main
from revedge.errors import UsageError
from revedge.planner import base, ladder
from revedge.planner.formulas import Formulas
from revedge.planner.plan import Plan
from revedge.planner.request import Request
from revedge.planner.setting import Setting
from revedge.planner.trace_child import about, answer, trace
from revedge.planner.users import fitted
from revedge.planner.verify import verify

from .planner_settings import LARGEST_EXCESS

NETS = """
print("what code prints is no answer")

class Net(nn.Module):
    def __init__(self, in_shape, num_classes, timesteps, width=8, depth=2):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(in_shape[0], width, 3, bias=False), nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(*[Block(width) for _ in range(depth)])
        self.norm, self.lif, self.fc = nn.GroupNorm(2, width), LIFNode(), nn.Linear(width, num_classes)
    def forward(self, x):
        y = self.blocks(self.bn(self.stem(x.flatten(0, 1))).unflatten(0, x.shape[:2]))
        y = torch.nn.functional.gelu(self.norm(y.flatten(0, 1))).unflatten(0, x.shape[:2])
        return self.fc(self.lif(y).mean((-2, -1))).mean(0)

class Plain(nn.Linear):
    def __init__(self, in_shape, num_classes, timesteps):
        super().__init__(in_shape[0] * in_shape[1] * in_shape[2], num_classes)
    def forward(self, x):
        return super().forward(x.flatten(2))

class Failing(Plain):
    def forward(self, x):
        return self.missing(x)
"""


@pytest.fixture(autouse=True)
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, residual_block: str) -> Path:
    """Write the file; what is imported is forgotten after."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "nets.py").write_text(residual_block + NETS)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "nets.py"


def setting(function: str = "Net", **changes: Any) -> Setting:
    """Return a small one."""
    return Setting(
        **{
            "model": f"nets.py:{function}",
            "in_shape": (2, 12, 12),
            "num_classes": 3,
            "timesteps": 3,
            "batch_size": 4,
            "micro_batch_size": 4,
            "strategy": "keep-spikes",
            "model_sha256": "0" * 64,
            **changes,
        }
    )


def request(**changes: Any) -> Request:
    """Return a search for `setting`."""
    sizes: dict[str, Any] = {"in_shape": (2, 12, 12), "num_classes": 3, "timesteps": 3}
    fields = {"budget_bytes": 2**30, "data": "random", "model": "nets.py:Net", "batch_size": 4}
    return Request(**{**fields, **sizes, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"strategy": "store"},
        {"strategy": ("keep-conv", "keep-spikes", "keep-spikes"), "micro_batch_size": 2},
        {"strategy": "reverse", "update_in_backward": True, "slab_bytes": 4096},
        {"strategy": "keep-spikes", "span_count": 2, "static": True},
    ],
)
def test_short_cuts_change_no_byte(changes: dict[str, Any]) -> None:
    """The quick trace of a user's module is that of all of its operators."""
    quick, thorough = trace(setting(**changes)), trace(setting(**changes), thorough=True)
    counts = ("operations", "calls", "moved_bytes", "multiplications")
    for name in counts:
        del quick[name], thorough[name]
    assert quick == thorough


def test_strategies_save_in_the_trace() -> None:
    """What apply has put under them takes less than under ordinary autograd; depth takes more."""
    peak = {s: trace(setting(strategy=s))["peak_bytes"] for s in ("store", "keep-spikes")}
    assert peak["keep-spikes"] < peak["store"]
    deeper = setting(strategy="store", model_options={"depth": 9})
    assert trace(deeper)["peak_bytes"] > peak["store"]


def test_what_apply_has_made_is_told() -> None:
    """Runs, whether they can update in backward, and the report; a net without neurons has none of it."""
    found = about(setting())
    assert found["runs"] == 3
    assert found["updates"]
    assert "Net: 3 runs hold 3 neurons" in found["report"]
    assert about(setting("Plain")) == {
        "runs": 0,
        "updates": False,
        "report": "Plain: 0 runs hold 0 neurons; 0 left on ordinary autograd",
    }


def test_an_error_of_the_code_is_named() -> None:
    """One line for the user, and the traceback for --debug."""
    found = answer({"do": "trace", "setting": setting("Failing").to_json()})
    assert found["kind"] == "UsageError"
    assert "a training step, traced, raised AttributeError: " in found["error"]
    assert "\n" not in found["error"]
    assert "return self.missing(x)" in found["traceback"]


class Teller:
    """Answers for a tracing process."""

    def __init__(self, **told: Any) -> None:
        self.told, self.asked = {"runs": 2, "updates": True, "report": ""} | told, 0

    def about(self, _: Setting) -> dict[str, Any]:
        """Answer, and count."""
        self.asked += 1
        return self.told

    geometry = trace = about


def test_a_search_leaves_out_what_cannot_be_done() -> None:
    """No update in backward where it is refused; one strategy where there is no run; else everything."""
    asked = request()
    assert fitted(asked, {}, Teller()) == asked  # type: ignore[arg-type]
    for told, ways in (
        ({"updates": False}, {(s, False) for s in asked.strategies()}),
        ({"updates": False, "runs": 0}, {("store", False)}),
    ):
        narrowed = fitted(asked, {}, Teller(**told))  # type: ignore[arg-type]
        assert {(w.strategy, w.update_in_backward) for w in narrowed.ways(4)} == ways
    insisting = request(update_in_backward=True)  # whose error is told where it is trained
    assert fitted(insisting, {}, Teller(updates=False)) == insisting  # type: ignore[arg-type]
    own = dataclasses.replace(asked, model="vgg5")
    teller = Teller()
    assert fitted(own, {"vgg": ["vgg5"]}, teller) == own  # type: ignore[arg-type]
    assert teller.asked == 0


def test_its_depth_can_be_climbed() -> None:
    """Up to what a trace of all blocks can be made of in some seconds; a range is taken as it is."""
    rungs = ladder.build(request(prefer="depth"), {}).rungs
    assert [rung.options["depth"] for rung in rungs] == list(range(1, 65))
    ranged = ladder.build(request(ranges={"depth": (2, 99)}), {})
    assert ranged.rungs[-1].options == {"depth": 99}


def test_no_formula_is_asked_for() -> None:
    """A module of the user's is traced, always."""
    teller = Teller()
    assert Formulas(teller).net(setting()) is None  # type: ignore[arg-type]
    assert teller.asked == 0


def test_code_has_its_own_memory() -> None:
    """Another digest is another setting, and another base; a plan keeps it in its file."""
    assert setting().key() != setting(model_sha256="1" * 64).key()
    assert base.family_of("nets.py:Net2") == "nets.py:Net2"
    made = request().plan(
        request().setting("nets.py:Net", {}, 3, 4, "adamw", request().ways(4)[0]), {}
    )
    assert made.model_sha256 is not None
    assert Plan.from_toml(made.to_toml()) == made
    assert "model_sha256" not in dataclasses.replace(made, model_sha256=None).to_toml()


def test_a_plan_of_other_code_is_not_shown(capsys: pytest.CaptureFixture[str], nets: Path) -> None:
    """Nor verified: the file's bytes are of the code that it was made of."""
    way = request().ways(4)[0]
    request().plan(request().setting("nets.py:Net", {}, 3, 4, "adamw", way), {}).save("p.toml")
    assert main(["plan", "--plan", "p.toml"]) == 0
    assert "Net T=3 batch 4" in capsys.readouterr().out
    nets.write_text(nets.read_text() + "# other code\n")
    assert main(["plan", "--plan", "p.toml", "--verify"]) == UsageError.exit_code
    assert "its code has changed since it was planned" in capsys.readouterr().err


def test_plan_and_measure(capsys: pytest.CaptureFixture[str], nets: Path) -> None:
    """The command prints what apply did; two real steps take what was predicted, within 5 %, and not more."""
    words = "--model nets.py:Net --in-shape 2,12,12 --classes 3 --timesteps 3 --batch 4"
    ways = "--strategy keep-spikes --slab none --update-in-backward no --no-times"
    code = main(f"plan {words} {ways} --budget 2GiB --threads 1 --out p.toml --json".split())
    captured = capsys.readouterr()
    assert code == 0, captured.err
    found = json.loads(captured.out.splitlines()[-1])
    assert found["config"]["model"] == f"{nets}:Net"
    assert "residual of 2 blocks" in found["applied"]
    plan = Plan.load("p.toml")
    measured = verify(plan)
    assert measured.problem is None
    assert 0 <= plan.predicted_peak_bytes / measured.measured_peak_bytes - 1 <= LARGEST_EXCESS
    changes = "--depth 2 --width 2..8 --model nets.py:Failing"
    code = main(f"plan {words} {changes} --budget 2GiB".split())
    captured = capsys.readouterr()
    assert code == UsageError.exit_code
    assert len(captured.err.strip().splitlines()) == 1
    assert "takes no width" in captured.err
