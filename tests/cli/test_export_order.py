"""`revedge export --numerics exact` finishes the training before it loads torch, whose memory would count."""

import json
import subprocess
import sys
from pathlib import Path

CODE = """
import sys
from revedge.cli.main import main
from revedge.devices import finish

def instead(run, epochs):
    print("torch" in sys.modules)
    raise SystemExit(0)

finish.finish = instead
main(["export", sys.argv[1], "--numerics", "exact", "--format", "onnx", "-o", sys.argv[1] + "/out"])
"""


def test_the_finish_runs_before_torch_is_loaded(tmp_path: Path) -> None:
    """The exporting process supervises the finish, so it stays small until that is done."""
    model = {
        "format": "revedge-model", "version": 1, "size_bytes": 0, "sha256": "",
        "config": {"name": "revsresnet11"}, "data": {"name": "digits", "timesteps": 8},
    }  # fmt: skip
    (tmp_path / "model.json").write_text(json.dumps(model))
    (tmp_path / "model.safetensors").write_bytes(b"")
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.split() == ["False"], done.stderr
