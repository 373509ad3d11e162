"""The largest resident memory of a command and all its children, sampled from outside.

Run: python benchmarks/outside_peak.py COMMAND [ARG ...]
Prints, after the command's own output, one JSON object: the peak of the sum over the whole process tree, and the peak
of the sum over supervisor and trainer alone (short-lived children that plan, read data or draw come before and after).
Needs psutil.
"""

import argparse
import json
import subprocess
import sys
import time

import psutil

_INTERVAL_S = 0.005
_TRAINER = "revedge.devices.trainer"


def main() -> int:
    """Run the command, sample, print; the exit code is the command's."""
    parser = argparse.ArgumentParser(description="Peak resident bytes of a process tree.")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="what to run")
    command = parser.parse_args().command
    if not command:
        parser.error("give a command, as in: outside_peak.py revedge train ...")
    process = subprocess.Popen(command)
    root = psutil.Process(process.pid)
    tree_peak_bytes = training_peak_bytes = samples = 0
    kinds: dict[int, bool] = {}  # pid -> is a trainer
    while process.poll() is None:
        total = own = trainer = 0
        try:
            family = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            break
        for one in family:
            try:
                if one.pid not in kinds:
                    kinds[one.pid] = _TRAINER in one.cmdline()
                size = one.memory_info().rss
            except psutil.Error:
                continue
            total += size
            own += size if one.pid == root.pid else 0
            trainer += size if kinds[one.pid] else 0
        samples += 1
        tree_peak_bytes = max(tree_peak_bytes, total)
        if trainer:
            training_peak_bytes = max(training_peak_bytes, own + trainer)
        time.sleep(_INTERVAL_S)
    figures = {
        "tree_peak_bytes": tree_peak_bytes,
        "supervisor_and_trainer_peak_bytes": training_peak_bytes,
        "samples": samples,
    }
    print(json.dumps(figures))
    return process.returncode


if __name__ == "__main__":
    sys.exit(main())
