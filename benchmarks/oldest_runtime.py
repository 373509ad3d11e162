"""Does an older onnxruntime load and run every file? Every model of the registry, narrow, in every graph.

Some are written at full width, too, because 8-bit weights are multiplied as integers from 32 channels on.

    python benchmarks/oldest_runtime.py write DIR     # with torch, onnx and today's onnxruntime
    OLD/bin/python benchmarks/oldest_runtime.py run DIR     # with numpy and the other onnxruntime, e.g. 1.18

``write`` also keeps what today's onnxruntime answers. ``run`` ends with 1 if a file does not load, or an exact one
answers other bits. Float answers may differ by a flipped spike; the largest difference is printed.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from revedge.errors import RevedgeError
from revedge.export.runner import StreamRunner

BATCH, STEPS = 2, 4
WIDE = ("vgg5", "plif-net7", "ms-resnet6", "resnet18", "revsresnet24", "revsformer-2-256")
KINDS = ("onnx", "onnx-scan", "onnx-blocks", "onnx-unrolled")
ANSWERS = "answers.npz"


def write(folder: Path) -> None:
    """Write the files and today's answers."""
    import torch
    from exact_numerics import smallest
    from export_nets import Frames, full_width

    from revedge import models
    from revedge.export.exact_form import exact_form
    from revedge.export.formats import Choices
    from revedge.export.inference import inference_form
    from revedge.export.onnx_file import write_onnx
    from revedge.export.writer import exact_manifest, manifest_of

    torch.set_num_threads(1)
    nets = [(name, smallest, name) for name in models.names()]
    nets += [(name, full_width, f"{name}.wide") for name in WIDE]
    for member, make, name in nets:
        net = make(member)
        exact = exact_form(net, Frames.scale)
        for kind in KINDS:
            steps = STEPS if kind == "onnx-unrolled" else None
            manifest = manifest_of(net, Frames(), "", kind, Choices(steps=steps))
            write_onnx(inference_form(net), manifest, folder / f"{name}.{kind}.float.onnx")
            manifest = manifest_of(net, Frames(), "", kind, Choices(steps=steps, weights="int8"))
            path = folder / f"{name}.{kind}.exact.onnx"
            write_onnx(exact.net, exact_manifest(manifest, exact.certificate), path)
    np.savez(folder / ANSWERS, **{path.name: answer(path) for path in files(folder)})
    print(f"{len(list(files(folder)))} files in {folder.name}")


def files(folder: Path) -> Iterator[Path]:
    """The models in a folder."""
    yield from sorted(folder.glob("*.onnx"))


def answer(path: Path) -> Any:
    """Logits of a short random recording."""
    runner = StreamRunner(path)
    told = runner.manifest
    rng = np.random.default_rng(0)
    x = rng.poisson(0.6, (STEPS, BATCH, *told.in_shape)).astype(np.float32)
    runner.reset(BATCH)
    return runner.sequence(x)


def run(folder: Path) -> bool:
    """Run the files; return whether all load and exact ones agree."""
    import onnxruntime

    bad, largest, equal = 0, 0.0, 0
    with np.load(folder / ANSWERS) as answers:
        for path in files(folder):
            try:
                found, expected = answer(path), answers[path.name]
            except RevedgeError as error:
                print(f"{path.name}: {error}")
                bad += 1
                continue
            if ".exact." not in path.name:
                largest = max(largest, float(np.abs(found - expected).max()))
            elif np.array_equal(found, expected):
                equal += 1
            else:
                print(f"{path.name}: exact, and other bits")
                bad += 1
    print(
        f"onnxruntime {onnxruntime.__version__}: {bad} of {len(list(files(folder)))} files fail; {equal} exact files "
        f"have the bits of the one that wrote them, float ones differ by at most {largest:.2g}"
    )
    return bad == 0


def main() -> int:
    """Write or run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("write", "run"))
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    if args.what == "run":
        return 0 if run(args.folder) else 1
    args.folder.mkdir(parents=True, exist_ok=True)
    write(args.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
