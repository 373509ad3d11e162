"""TorchScript files load and run in plain torch; their step, stream and sequence agree."""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from zoo import Export, events

from revedge.errors import ExportError
from revedge.export.torchscript import deprecations_silenced, read_torchscript
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
folder, batch = sys.argv[1], 3
extra = {"revedge.json": ""}
step = torch.jit.load(folder + "/model.step.pt", _extra_files=extra)
stream = torch.jit.load(folder + "/model.stream.pt")
info = json.loads(extra["revedge.json"])
torch.manual_seed(0)
x = (torch.rand(info["timesteps"], batch, *info["input"]["shape"]) > 0.6).float()
states = [torch.full([batch, *s["shape"]], s["init"]) for s in info["states"]]
total = torch.zeros(batch, info["classes"]["count"])
stream.reset(batch)
for frame in x:
    logits, states = step(frame, states)
    assert torch.equal(logits, stream(frame))
    total += logits
stream.reset(batch)
mean = stream.sequence(x)
assert torch.equal(mean, total / len(x)), (mean - total / len(x)).abs().max()
assert not any(name.split(".")[0] == "revedge" for name in sys.modules)
print(json.dumps(mean.tolist()))
"""


def test_files_run_without_revedge(exported: Export, run_python, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """With every import of revedge blocked: step = stream = sequence = the trained network."""
    script = tmp_path / "plain.py"
    script.write_text(_PLAIN)
    done = run_python(str(script), str(exported.folder))
    assert done.returncode == 0, done.stderr
    torch.manual_seed(0)
    x = (torch.rand(4, 3, 2, 16, 16) > 0.6).float()
    with torch.no_grad():
        expected = exported.net(x)
    # Two roundings to the stream's grid may differ per value and block; 0.02 is far below any change of a spike's worth
    # in logits that are means over 64 pixels, and far above what grid steps of 6e-5 add up to.
    assert np.allclose(json.loads(done.stdout), expected.numpy(), atol=0.02)


def test_stream_refuses_another_batch(exported: Export) -> None:
    """Before reset, and when the batch changes: an error, not a broadcast."""
    stream = read_torchscript(exported.folder / "model.stream.pt")[0]
    frame = torch.from_numpy(events(1, 2, 0, (2, 16, 16))[0])
    with pytest.raises(torch.jit.Error, match="reset"):
        stream(frame)
    stream.reset(2)
    assert stream(frame).shape == (2, 5)
    with pytest.raises(torch.jit.Error, match="reset"):
        stream(frame[:1])


def test_python_3_14_is_refused(
    exported: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names onnx, and nothing is written."""
    monkeypatch.setattr(sys, "version_info", (3, 14, 0))
    with pytest.raises(ExportError, match=r"Python 3\.14; use --format onnx"):
        export_network(exported.net, exported.frames, tmp_path, ["torchscript"])
    assert list(tmp_path.iterdir()) == []


def test_only_torchscript_warnings_are_silenced() -> None:
    """Another DeprecationWarning still shows."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with deprecations_silenced():
            warnings.warn(
                "`torch.jit.script` is deprecated. Please switch", DeprecationWarning, stacklevel=1
            )
            warnings.warn("`torch.other` is deprecated", DeprecationWarning, stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["`torch.other` is deprecated"]


def test_truncated_file_is_an_error(exported: Export, tmp_path: Path) -> None:
    """One line, no traceback of torch."""
    content = (exported.folder / "model.step.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(ExportError, match=r"cut\.pt is damaged"):
        read_torchscript(tmp_path / "cut.pt")
