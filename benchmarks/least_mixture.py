"""How much less a mixture of strategies takes at its least than the best single one, for every model. No training.

Run: python benchmarks/least_mixture.py

Live bytes by the planner's formulas, CIFAR frames, SGD, update in backward, at T = 4 with batch 16 and T = 16 with
batch 4: whole, in slabs of 2 MiB, and in slabs and 8 spans. Prints a line where a mixture takes less, and counts.
"""

import dataclasses

from revedge.cli.output import table
from revedge.planner.formulas import Formulas
from revedge.planner.mixture import Part, least_first
from revedge.planner.setting import Setting
from revedge.planner.trace_client import TraceClient

MIB = 2.0**20
STRATEGIES = ("store", "keep-conv", "keep-spikes", "reverse")
SHAPES = ((4, 16), (16, 4))  # T, batch
CUTS = ((None, None), (2 << 20, None), (2 << 20, 8))  # slab bytes, spans


def main() -> int:
    """Evaluate and print."""
    asked, rows = 0, []
    with TraceClient() as tracer:
        formulas = Formulas(tracer)
        models = sorted({name for names in tracer.families().values() for name in names})
        for name in models:
            for timesteps, batch in SHAPES:
                for slab_bytes, span_count in CUTS:
                    setting = Setting(
                        model=name,
                        in_shape=(3, 32, 32),
                        num_classes=10,
                        timesteps=timesteps,
                        batch_size=batch,
                        micro_batch_size=batch,
                        strategy="store",
                        slab_bytes=slab_bytes,
                        span_count=span_count,
                        update_in_backward=True,
                        optimizer="sgd",
                    )
                    asked += 1
                    one, mixture, names = _least(formulas, setting)
                    if mixture < one:
                        cut = f"{slab_bytes} {span_count}"
                        sizes = [f"{one / MIB:.2f}", f"{mixture / MIB:.2f}"]
                        share = f"{1 - mixture / one:.1%}"
                        rows.append(
                            (name, f"{timesteps}x{batch}", cut, *sizes, share, "+".join(names))
                        )
    header = ("net", "T x batch", "slab, spans", "one", "mixture", "less", "runs")
    print(table(header, rows), f"{len(rows)} of {asked}, {len(models)} models", sep="\n")
    return 0


def _least(formulas: Formulas, setting: Setting) -> tuple[int, int, tuple[str, ...]]:
    """Return the least live bytes of one strategy for all runs, of a mixture, and that mixture."""
    parts, peaks, start = {}, [], 0
    for name in STRATEGIES:
        each = dataclasses.replace(setting, strategy=name)
        told = formulas.by_run(each)
        if told is None:
            raise RuntimeError(f"no formula covers {setting.model}")
        peaks.append(formulas.trace(each)["peak_bytes"])
        start = told.start_bytes
        parts[name] = [Part(*run, 0.0) for run in told.runs]
    names = least_first(parts, start)[0]
    mixture = formulas.trace(dataclasses.replace(setting, strategy=names))["peak_bytes"]
    return min(peaks), mixture, names


if __name__ == "__main__":
    raise SystemExit(main())
