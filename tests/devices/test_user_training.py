"""A model of the user's, from the command line: trained under its budget, resumed, exported."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

from revedge.planner.plan import Plan

Command = Callable[..., subprocess.CompletedProcess[str]]
NETS = """
from torch import nn
from revedge.neurons import LIFNode

def build(in_shape, num_classes, timesteps, width=8, act="sign"):
    head = nn.Linear(width, num_classes)
    tail = [] if act == "none" else [nn.Hardtanh()]
    first = nn.Linear(in_shape[0] * in_shape[1] * in_shape[2], width)
    return nn.Sequential(nn.Flatten(2), first, LIFNode(), head, *tail)
"""


def test_train_and_export(tmp_path: Path, revedge_command: Command) -> None:
    """Its budget is kept, a changed file is refused, another folder is no matter, and export names what it cannot."""
    (tmp_path / "net.py").write_text(NETS)
    words = "train --data digits --model net.py:build --option act=none --budget 1GiB"
    ways = "--strategy keep-spikes --slab none --update-in-backward yes --threads 1"
    done = revedge_command(*f"{words} {ways} --epochs 1 --out run --json".split())
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["measured_peak_bytes"] <= result["predicted_peak_bytes"]
    plan = Plan.load(tmp_path / "run" / "plan.toml")
    assert plan.model == f"{tmp_path}/net.py:build"
    assert plan.model_options == {"act": "none"}
    exported = revedge_command("export", "run", "--format", "onnx", "-o", "out", "--json")
    assert exported.returncode == 0, exported.stderr
    assert json.loads(exported.stdout.splitlines()[-1])["argmax_changed"] == 0
    (tmp_path / "net.py").write_text(f"{NETS}# another\n")
    for command in (["export", "run", "--format", "onnx", "-o", "other"],
                    ["train", "--plan", "run/plan.toml", "--out", "other"]):  # fmt: skip
        refused = revedge_command(*command)
        assert refused.returncode == 2
        assert "its code has changed since it was planned" in refused.stderr
