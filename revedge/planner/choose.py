"""The planner as one call: measure the base, ask the tracing process, search. Free of torch."""

import dataclasses
from collections.abc import Mapping

from revedge.planner import base
from revedge.planner.cost import predict
from revedge.planner.descent import descend
from revedge.planner.precision import AUTO
from revedge.planner.request import Request
from revedge.planner.result import SearchResult
from revedge.planner.search import Progress, search
from revedge.planner.setting import Setting
from revedge.planner.timing import in_less_precision, timed
from revedge.planner.trace_client import TraceClient


def choose(
    request: Request,
    progress: Progress = lambda tried: None,
    *,
    timeline: bool = False,
    rungs: bool = False,
    times: bool = False,
) -> SearchResult:
    """Return the best plan for ``request``, or the floor where nothing fits.

    ``timeline`` adds the live bytes over a step of what was chosen (of the floor where nothing fits), for a report.
    ``rungs`` adds what lies below the plan, should its memory not be enough after all (`descend`).

    ``times`` adds how long a step takes, measured on this machine in at most some 12 s more. Without them a request
    with precision "auto" is trained in float32.

    The first call on a machine takes some 10 s (two measuring processes); later ones 1 to 10 s, or
    nothing where everything is remembered.

    Raises:
        UsageError: the model is not known, or cannot exist for these frames.
        DeviceError: a child process failed.
    """
    progress(0)
    measured = base.measure(request.threads, request.device, context_bytes=request.context_bytes)
    with TraceClient() as tracer:
        found = search(
            request,
            tracer.families(),
            lambda setting: predict(setting, measured, tracer),
            progress,
        )
        if times:

            def parts(setting: Setting) -> Mapping[str, int]:
                return predict(setting, measured, tracer).parts

            found = timed(found, request, parts)
            if request.precision == AUTO:
                found = in_less_precision(found, request, parts)
        setting = found.floor_setting if found.plan is None else Setting.of(found.plan)
        if timeline and setting is not None:
            found = dataclasses.replace(found, timeline=tracer.timeline(setting))
        if rungs and found.plan is not None:
            below = descend(found.plan, lambda each: predict(each, measured, tracer))
            found = dataclasses.replace(found, rungs=tuple(below))
        return found
