"""Train inside a RAM limit from a script: ask for a plan, train it, and compare promise and measurement.

    python examples/01_train_in_a_budget.py --budget 400MiB --epochs 4 --out runs/example

Every command has --json: one object as the last line of stdout, with units in its keys. So the same works from
a shell, a service or a notebook, and the script itself needs no torch.
"""

import argparse
import json
import subprocess
import sys
from typing import Any

from revedge import format_bytes


def revedge(*words: str) -> dict[str, Any]:
    """Run one command, let it show its progress, and return its JSON object."""
    print("$ revedge", *words, flush=True)
    command = [sys.executable, "-m", "revedge", *words, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if done.returncode != 0:  # the error is one line, on stderr already
        sys.exit(done.returncode)
    return result


def main() -> None:
    """Plan, train, report."""
    parser = argparse.ArgumentParser(description="plan and train inside a budget")
    parser.add_argument("--budget", default="400MiB")
    parser.add_argument("--epochs", default="4")
    parser.add_argument("--timesteps", default="8")
    parser.add_argument("--out", default="runs/example")
    args = parser.parse_args()

    common = ["--data", "digits", "--budget", args.budget, "--timesteps", args.timesteps]
    plan = revedge("plan", *common)
    print(f"fits: {plan['feasible']}, predicted peak {format_bytes(plan['predicted_peak_bytes'])}")
    print(f"nothing fits below {format_bytes(plan['floor_bytes'])}\n")

    result = revedge("train", *common, "--epochs", args.epochs, "--seed", "0", "--out", args.out)
    print(f"test accuracy {result['test_accuracy']:.1%} after {result['epochs']} epochs")
    for name in ("measured", "predicted"):
        print(f"{name} peak {format_bytes(result[f'{name}_peak_bytes'])}")
    print(f"budget {format_bytes(result['budget_bytes'])}")


if __name__ == "__main__":
    main()
