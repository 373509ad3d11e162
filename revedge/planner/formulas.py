"""Answers for the live bytes of a setting by formulas, where they cover it, else by a trace. Free of torch.

The formulas (`form`) are equal to the trace to the byte, which is tested, and take some ms instead of 20 to 150. So a
search asks them for everything that it rules out, and the tracer confirms what it chooses (`choose.py`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from revedge.planner.cost import ByRun
from revedge.planner.form.shape import Net, NotCoveredError, net_of
from revedge.planner.form.step import Evaluated, evaluate
from revedge.planner.setting import Setting
from revedge.planner.trace_client import TraceClient
from revedge.user_code import is_user_model


class Formulas:
    """A tracer like `TraceClient`, which it asks for what no formula covers.

    Args:
        tracer: describes networks, and traces the rest.
    """

    def __init__(self, tracer: TraceClient) -> None:
        self._tracer = tracer
        self._nets: dict[str, Net | None] = {}
        self._last: tuple[tuple[str, ...], Evaluated | None] = (("",), None)
        self.evaluated = 0  # settings that formulas have answered for
        self.traced = 0  # that they have not

    def trace(self, setting: Setting) -> Mapping[str, int]:
        """Return the peak and what a prediction takes from a trace.

        All that comes and goes is told as ``activations_bytes``.

        Raises:
            UsageError, TraceError: as `TraceClient.trace`.
        """
        found = self._evaluated(setting)
        if found is None:
            self.traced += 1
            return self._tracer.trace(setting)
        self.evaluated += 1
        net = self.net(setting)
        assert net is not None
        static_bytes = found.weights_bytes + found.optimizer_bytes
        return {
            "peak_bytes": found.peak_bytes,
            "weights_bytes": found.weights_bytes,
            "optimizer_bytes": found.optimizer_bytes,
            "activations_bytes": found.peak_bytes - static_bytes,
            "parameter_tensors": sum(net.parameters.values()),
            "runs": len(net.runs),
            "convolutions": len(found.convolutions),
            "narrow": int(any(each.narrow for each in found.convolutions)),
        }

    def by_run(self, setting: Setting) -> ByRun | None:
        """Return what each run takes, and its multiplications; None where no formula covers it."""
        found, net = self._evaluated(setting), self.net(setting)
        if found is None or net is None:
            return None
        return ByRun(found.start_bytes, found.runs, net.multiplications(setting))

    def sites(self, setting: Setting) -> Sequence[tuple[str, int]]:
        """Return the live bytes at each part of a step, see `Evaluated`; nothing where no formula covers it."""
        found = self._evaluated(setting, with_sites=True)
        return () if found is None else found.sites

    def most_spans(self, setting: Setting) -> int | None:
        """Return the spans of time that a block goes backward in, at most; None where no formula covers it."""
        found = self._evaluated(setting)
        return None if found is None else found.most_spans

    def _evaluated(self, setting: Setting, **options: Any) -> Evaluated | None:
        """Evaluate, but for what was asked last."""
        key = (setting.key(), *options)
        if key != self._last[0]:
            net = self.net(setting)
            try:
                found = (
                    None
                    if net is None
                    else evaluate(net, setting, self._tracer.page_bytes, **options)
                )
            except NotCoveredError:
                found = None
            self._last = (key, found)
        return self._last[1]

    def net(self, setting: Setting) -> Net | None:
        """Return the geometry of a network; None where formulas do not cover it."""
        if setting.device != "cpu" or is_user_model(setting.model):
            return None
        options = sorted(setting.model_options.items())
        key = repr((setting.model, options, setting.in_shape, setting.num_classes))
        if key not in self._nets:
            found = self._tracer.geometry(setting)
            self._nets[key] = None if "not_covered" in found else net_of(found)
        return self._nets[key]
