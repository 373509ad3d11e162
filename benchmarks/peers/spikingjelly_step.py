"""One training step of SpikingJelly: memory and time, as one JSON line.

Run: python benchmarks/peers/spikingjelly_step.py METER.py --net vgg11 --mode stored [--timesteps 8] [--batch 8]

Needs torch and SpikingJelly 2.0 (`pip install --no-deps spikingjelly==2.0.0 loguru`). Nothing of revedge is imported;
METER.py is a file that measures, loaded by its path: revedge/cli/step_meter.py, the one that measures revedge, too.
stored: back-propagation through time as SpikingJelly does it. memopt: its memory optimizer at level 1, the highest that
runs on a CPU, for least memory and with spike compression.
"""

import argparse
import importlib.util
import json
import logging
import pathlib
import sys
import warnings
from types import ModuleType

warnings.filterwarnings("ignore")
logging.disable(logging.CRITICAL)

import torch  # noqa: E402
from spikingjelly.activation_based import functional, memopt  # noqa: E402
from torch.nn.functional import cross_entropy  # noqa: E402


def _load(path: pathlib.Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Measure and print."""
    nets = _load(pathlib.Path(__file__).parent / "spikingjelly_nets.py")
    parser = argparse.ArgumentParser(description="One training step of SpikingJelly.")
    parser.add_argument("meter", type=pathlib.Path)
    parser.add_argument("--net", choices=nets.NETS, required=True)
    parser.add_argument("--mode", choices=["stored", "memopt"], default="stored")
    parser.add_argument("--timesteps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    meter = _load(args.meter)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    net = nets.NETS[args.net](args.timesteps).train()
    image, label = nets.images(args.batch)

    def forward(model: torch.nn.Module) -> torch.Tensor:
        functional.reset_net(model)
        return model(image)

    def step() -> float:
        net.zero_grad(set_to_none=True)
        loss = cross_entropy(forward(net), label)
        loss.backward()
        functional.reset_net(net)
        return float(loss)

    row = {"library": "spikingjelly", "net": args.net, "strategy": args.mode}
    row |= {"timesteps": args.timesteps, "batch": args.batch}
    with meter.anonymous_peak(row):
        if args.mode == "memopt":
            net = memopt.optimize_memory(
                net,
                nets.TARGETS[args.net],
                example_forward=forward,
                level=1,
                checkpoint_budget="memory",
                compress=True,
            )
        row["loss"] = step()
        if args.repeats > 1:
            step()
    row["cpu_s"] = round(meter.cpu_seconds(step, args.repeats), 4)
    row |= meter.tracked_peaks(step, net)
    assert "revedge" not in sys.modules
    print(json.dumps(row))


if __name__ == "__main__":
    main()
