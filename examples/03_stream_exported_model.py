"""Stream recordings through an exported model, frame by frame: numpy and onnxruntime, no torch.

    revedge export runs/demo --format onnx -o out
    python examples/03_stream_exported_model.py out/model.onnx --recordings 3

Between frames only the neurons' states are kept. The decision at any moment is the mean of the logits so far,
so a stream may be judged before its recording ends.
"""

import argparse
import sys
import time

import numpy as np

from revedge.data import FrameCache, prepare
from revedge.export.runner import StreamRunner


def main() -> None:
    """Show the decision after every frame of a few recordings of the test split."""
    parser = argparse.ArgumentParser(description="run an exported model as a stream")
    parser.add_argument("model", help="model.onnx of `revedge export`")
    parser.add_argument("--recordings", type=int, default=3)
    args = parser.parse_args()

    runner = StreamRunner(args.model)
    cache = FrameCache.open(prepare("digits", timesteps=runner.manifest.timesteps))
    spent_s: list[float] = []
    for index in cache.test_indices[: args.recordings]:
        frames, labels = cache.batch(np.array([index]))  # uint8 [T, 1, C, H, W]
        runner.reset(batch=1)
        total = np.zeros((1, cache.num_classes), np.float32)
        decisions = []
        for frame in frames:
            start_s = time.perf_counter()
            total += runner.step(frame * np.float32(cache.scale))
            spent_s.append(time.perf_counter() - start_s)
            decisions.append(cache.class_names[int(total.argmax())])
        print(f"recording of a {cache.class_names[labels[0]]}: {' '.join(decisions)}")
    print(
        f"median step {1e3 * float(np.median(spent_s)):.2f} ms, torch loaded: {'torch' in sys.modules}"
    )


if __name__ == "__main__":
    main()
