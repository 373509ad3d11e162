"""The reversible neuron's three backwards: direct, conventional and stored (arXiv 2308.08649, figures 5 and 6).

Run: python benchmarks/bench_reversible.py [--parts neuron,vgg,memory,inverse] [--picture FILE.svg] [--quick]
Prints tables, and as its last line one JSON object. Takes 5 minutes on one core. The picture needs matplotlib.

Every job is a fresh process with the allocator of a training, in which the ways take turns (reversible_child.py). Times
are CPU seconds, summed over threads. A job whose gradients differ reports nothing.

The bars: the direct backward of the neuron takes at least 40 % less time than the conventional one, and no more than
the stored one.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
from typing import Any

from revedge import child
from revedge.allocator import preload

LEAST_SAVING = 0.40
SHAPES = [  # T, B, C, H, W: from a last layer to a first one
    [8, 2, 512, 2, 2],
    [4, 4, 64, 8, 8],
    [8, 4, 64, 16, 16],
    [20, 4, 128, 16, 16],
    [4, 32, 64, 32, 32],
    [8, 16, 64, 32, 32],
]
NETS = ["vgg11", "vgg13", "vgg16", "vgg19"]
TIMESTEPS = [4, 6, 8]
BACKWARDS = ["direct", "conventional", "stored"]
COLOURS = {"direct": "tab:blue", "conventional": "tab:green", "stored": "tab:red"}  # as in figure 6


def measure(what: str, threads: int = 1, **job: Any) -> dict[str, Any]:
    """Run one job in a fresh process."""
    script = pathlib.Path(__file__).with_name("reversible_child.py")
    done = subprocess.run(
        [sys.executable, str(script), json.dumps({"what": what, "threads": threads, **job})],
        env=child.environment(OMP_NUM_THREADS=str(threads), **preload()),
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{what} {job} failed")
    return {**job, "threads": threads, **json.loads(done.stdout.splitlines()[-1])}


def saving(row: dict[str, Any], key: str) -> float:
    """Return the share of the conventional time that the direct way does not need."""
    return 1.0 - row[key]["direct"] / row[key]["conventional"]


def bench_neuron(quick: bool) -> list[dict[str, Any]]:
    """Measure and print the neuron alone."""
    print("One neuron: milliseconds forward / backward")
    rows = []
    for threads in (1, 2):
        for shape in SHAPES[:2] if quick else SHAPES:
            row = measure("neuron", threads, shape=shape, repeats=3 if quick else 9)
            rows.append(row)
            back = row["backward_s"]
            print(
                f"\n{shape}, {threads} thread{'s' * (threads > 1)}: direct takes "
                f"{saving(row, 'backward_s'):.1%} less than conventional, "
                f"{back['direct'] / back['stored']:.2f} of stored; "
                f"all in C {1 - back['direct'] / back['conventional, all in C']:.1%} less, "
                f"all in PyTorch {1 - back['direct, all in PyTorch'] / back['conventional']:.1%} less"
            )
            for name, seconds in back.items():
                print(f"  {name:<30} {row['forward_s'][name] * 1e3:>9.3f} / {seconds * 1e3:>9.3f}")
    return rows


def bench_vgg(quick: bool) -> list[dict[str, Any]]:
    """Measure and print a training step of the VGGs."""
    print("\nVGG, 2 images: milliseconds backward (of which neurons)")
    print(
        "net    T  threads  direct            conventional      stored            saved: ", end=""
    )
    print("backward  step  neurons   direct/stored: backward  neurons")
    jobs = [(net, steps, 1) for net in NETS for steps in TIMESTEPS] + [("vgg19", 8, 2)]
    rows = []
    for net, steps, threads in jobs[:1] if quick else jobs:
        repeats = 3 if quick else 25
        row = measure("vgg", threads, net=net, timesteps=steps, batch=2, repeats=repeats)
        step = {b: row["forward_s"][b] + row["backward_s"][b] for b in BACKWARDS}
        row["step_s"] = step
        rows.append(row)
        cells = [
            f"{row['backward_s'][b] * 1e3:7.1f} ({row['neurons_backward_s'][b] * 1e3:6.2f})"
            for b in BACKWARDS
        ]
        ratio, alone = (
            row[key]["direct"] / row[key]["stored"] for key in ("backward_s", "neurons_backward_s")
        )
        print(
            f"{net} {steps:>2} {threads:>8}  {'  '.join(cells)} {saving(row, 'backward_s'):>14.1%}"
            f" {saving(row, 'step_s'):>6.1%} {saving(row, 'neurons_backward_s'):>8.1%}"
            f" {ratio:>24.2f} {alone:>8.2f}",
            flush=True,
        )
    return rows


def bench_memory() -> dict[str, Any]:
    """Measure and print what the neurons of VGG-19 keep at T = 20."""
    batch, mib = 128, 2**20
    row = measure("memory", net="vgg19", timesteps=20)
    print("\nNeurons of VGG-19, T = 20, batch 128: MiB kept besides the output Y, which the next")
    print(f"layer keeps in any case ({row['output_bytes_per_sample'] * batch / mib:.0f} MiB)")
    for name, size in row["kept_bytes_per_sample"].items():
        print(f"  {name:<30} {size * batch / mib:>8.0f}")
    return row


def bench_inverse() -> list[dict[str, Any]]:
    """Measure and print how wrong the printed inverse is."""
    print("\nThe printed inverse, float32, standard normal inputs, tau 2, alpha 0.1, beta 1")
    print("  T   inputs wrong   chains hit   smallest denominator   median error of V_0   gradient")
    rows = []
    for steps in (1, 4, 10, 20):
        row = measure("inverse", timesteps=steps, width=400_000)
        rows.append(row)
        print(
            f"{steps:>3} {row['wrong_by_a_spike'] / row['inputs']:>14.2e} {row['chains_hit']:>12.2e}"
            f" {row['smallest_denominator']:>22.1e} {row['v0_error_median']:>21.1e}"
            f" {row['gradient_off']:>10.1e}   forward-time: {row['forward_time_wrong']} wrong"
        )
    return rows


def bars(alone: list[dict[str, Any]], nets: list[dict[str, Any]]) -> dict[str, Any]:
    """Print and return which bars are met.

    Inside a net the median over the rows counts, since the neurons' few milliseconds of one row repeat to 0.2 only.
    """
    found: dict[str, Any] = {}
    for what, rows, key, one in (
        ("alone", alone, "backward_s", max),
        ("in_nets", nets, "neurons_backward_s", statistics.median),
    ):
        if not rows:
            continue
        least = min(saving(row, key) for row in rows)
        ratios = [row[key]["direct"] / row[key]["stored"] for row in rows]
        found |= {
            f"least_saving_{what}": least,
            f"saving_{what}_met": least >= LEAST_SAVING,
            f"of_stored_{what}": ratios,
            f"no_slower_{what}_met": one(ratios) <= 1.0,
        }
        print(
            f"\n{what}: at least {least:.1%} less than conventional (bar {LEAST_SAVING:.0%}); "
            f"{min(ratios):.2f} to {max(ratios):.2f} of stored, "
            f"median {statistics.median(ratios):.2f} (bar 1)"
        )
    return found


def draw(rows: list[dict[str, Any]], path: str) -> None:
    """Draw figure 6 of the paper from our numbers; below it the neurons alone."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "revedge"})
    figure, axes = pyplot.subplots(
        2, len(TIMESTEPS), sharex=True, sharey="row", figsize=(10, 6), layout="constrained"
    )
    for column, steps in enumerate(TIMESTEPS):
        chosen = [row for row in rows if row["timesteps"] == steps and row["threads"] == 1]
        names = [row["net"].upper() for row in chosen]
        for half, prefix in enumerate(("", "neurons_")):
            ax = axes[half, column]
            for way in BACKWARDS:
                for key, style in (("backward_s", "o-"), ("forward_s", "o--")):
                    values = [row[prefix + key][way] * 1e3 for row in chosen]
                    label = f"{way}, {key.removesuffix('_s')}" if (half, column) == (0, 0) else None
                    ax.plot(names, values, style, color=COLOURS[way], label=label, markersize=3)
            ax.grid(alpha=0.3)
            if half:
                ax.set_yscale("log")
        axes[0, column].set_title(f"T = {steps}")
    axes[0, 0].set_ylabel("whole net [ms]")
    axes[0, 0].set_ylim(bottom=0)
    axes[1, 0].set_ylabel("its neurons alone [ms]")
    axes[0, 0].legend(fontsize=7)
    figure.savefig(path, metadata={"Date": None})


def main() -> int:
    """Measure, print, draw; return 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description="Three backwards of the reversible neuron.")
    parser.add_argument("--parts", default="neuron,vgg,memory,inverse")
    parser.add_argument("--picture", help="file to draw the VGG times into, .svg")
    parser.add_argument("--quick", action="store_true", help="few sizes, few repeats")
    args = parser.parse_args()
    parts = args.parts.split(",")
    result: dict[str, Any] = {}
    if "neuron" in parts:
        result["neuron"] = bench_neuron(args.quick)
    if "vgg" in parts:
        result["vgg"] = bench_vgg(args.quick)
    if "memory" in parts:
        result["memory"] = bench_memory()
    if "inverse" in parts:
        result["inverse"] = bench_inverse()
    result |= bars(result.get("neuron", []), result.get("vgg", []))
    if args.picture:
        draw(result["vgg"], args.picture)
    print(json.dumps(result))
    return 0 if all(result[key] for key in result if key.endswith("_met")) else 1


if __name__ == "__main__":
    raise SystemExit(main())
