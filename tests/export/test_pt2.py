"""`.pt2` files load in plain torch, at any batch, and give the network's spikes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from zoo import KINDS, FakeFrames

from revedge.errors import ExportError
from revedge.export.pt2 import read_pt2
from revedge.export.writer import export_network

_PLAIN = """
import json, sys, warnings
warnings.simplefilter("ignore")

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "revedge":
            raise ImportError("revedge is blocked")
sys.meta_path.insert(0, Blocked())

import torch
extra = {"revedge.json": ""}
step = torch.export.load(sys.argv[1], extra_files=extra).module()
info = json.loads(extra["revedge.json"])
torch.manual_seed(0)
x = (torch.rand(4, 3, *info["input"]["shape"]) > 0.6).float()
states = [torch.full([3, *s["shape"]], s["init"]) for s in info["states"]]
every = []
with torch.no_grad():
    for frame in x:
        logits, states = step(frame, states)
        every.append(logits.tolist())
print(json.dumps(every))
"""


@pytest.mark.parametrize("numerics", ["float", "exact"])
def test_pt2_follows_the_network(numerics: str, tmp_path: Path, run_python) -> None:  # type: ignore[no-untyped-def]
    """Through the comparison, and in a process where importing revedge fails."""
    net = KINDS["coupling"]()
    frames = FakeFrames(net)
    file = export_network(net, frames, tmp_path, ["pt2"], numerics=numerics)[0]
    assert file.parity.argmax_changed == 0
    assert file.parity.largest_share_of_bound <= 1
    assert file.parity.compared_spikes > 10_000
    script = tmp_path / "plain.py"
    script.write_text(_PLAIN)
    done = run_python(str(script), str(tmp_path / "model.pt2"))
    assert done.returncode == 0, done.stderr
    step, metadata = read_pt2(tmp_path / "model.pt2")
    assert (metadata["graph"], metadata["numerics"], metadata["opset"]) == ("step", numerics, None)
    torch.manual_seed(0)
    x = (torch.rand(4, 3, *net.in_shape) > 0.6).float()
    states, every = net.initial_states(3), []
    with torch.no_grad():
        for frame in x:
            logits, states = step(frame, states)
            every.append(logits.tolist())
    assert json.loads(done.stdout) == every
    assert np.abs(np.array(every)).max() > 0


def test_damaged_pt2_is_an_error(tmp_path: Path) -> None:
    """One line, no traceback of torch."""
    net = KINDS["if hard"]()
    export_network(net, FakeFrames(net), tmp_path, ["pt2"], numerics="exact")
    content = (tmp_path / "model.pt2").read_bytes()
    (tmp_path / "cut.pt2").write_bytes(content[: len(content) // 2])
    with pytest.raises(ExportError, match=r"cut\.pt2 is damaged"):
        read_pt2(tmp_path / "cut.pt2")
