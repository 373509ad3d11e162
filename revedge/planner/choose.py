"""The planner as one call: measure the base, ask the tracing process, search. Free of torch."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from revedge.errors import UsageError
from revedge.planner import base, unit_time
from revedge.planner.cost import Prediction, predict
from revedge.planner.descent import descend
from revedge.planner.formulas import Formulas
from revedge.planner.precision import AUTO
from revedge.planner.rehearsed import closely
from revedge.planner.request import Request, code_sha256
from revedge.planner.result import SearchResult
from revedge.planner.search import search
from revedge.planner.setting import Setting
from revedge.planner.step_time import StepTime
from revedge.planner.timing import in_less_precision, timed
from revedge.planner.trace_client import TraceClient
from revedge.planner.tried import Progress
from revedge.planner.users import fitted
from revedge.user_code import is_user_model


def choose(
    request: Request,
    progress: Progress = lambda tried: None,
    *,
    timeline: bool = False,
    rungs: bool = False,
    times: bool = False,
    here: bool = True,
) -> SearchResult:
    """Return the best plan for ``request``, or the floor where nothing fits.

    Settings are ruled out by formulas where there are some; the plan and the floor are traced. Should a trace tell
    another peak than the formula, the search is made again with traces alone.

    ``timeline`` adds the live bytes over a step of what was chosen (of the floor where nothing fits), for a report.
    ``rungs`` adds what lies below the plan, should its memory not be enough after all (`descend`).

    ``times`` adds how long a step takes, measured on this machine in at most some 4 s more. Without them a request
    with precision "auto" is trained in float32.

    ``here`` is false for a plan of another board: its peak is computed alone. Of a small training here the peak is told
    by a rehearsal (`closely`), which takes some 4 s once; what is searched, the floor and the rungs are computed.

    The first call on a machine takes some 10 s (two measuring processes); later ones 1 to 10 s, or
    nothing where everything is remembered.

    Raises:
        UsageError: the model is not known, or cannot exist for these frames; spans of time were asked for that cut
            nothing in it.
        DeviceError: a child process failed.
    """
    progress(0)
    measured = base.measure(request.threads, request.device, context_bytes=request.context_bytes)
    with TraceClient(request.page_bytes) as tracer:
        formulas = Formulas(tracer)

        def exact(setting: Setting) -> Prediction:
            return predict(setting, measured, tracer)

        def quick(setting: Setting) -> Prediction:
            return predict(setting, measured, formulas)

        families = tracer.families()
        code_sha256.cache_clear()
        request = fitted(request, families, tracer)
        found = search(request, families, quick, progress)
        confirmed = _confirmed(found, request, quick, exact)
        found = confirmed or search(request, families, exact, progress)
        if found.plan is not None:
            _refuse_idle_spans(Setting.of(found.plan), formulas)
        if times:

            def parts(setting: Setting) -> Mapping[str, int]:
                return exact(setting).parts

            def units(settings: Sequence[Setting], seconds: float) -> list[StepTime | None]:
                nets = [(formulas.net(s), s) for s in settings]
                return unit_time.measure(nets, seconds=seconds, ask=tracer.ask)

            found = timed(found, request, parts, units=units, ask=tracer.ask)
            if request.precision == AUTO:
                found = in_less_precision(found, request, parts, ask=tracer.ask)
        if found.plan is not None and here:
            chosen = Setting.of(found.plan)
            computed = exact(chosen)
            close = closely(found.plan, computed, tracer)
            found = dataclasses.replace(
                found,
                plan=request.plan(chosen, close.parts),
                computed_peak_bytes=None if close is computed else computed.predicted_peak_bytes,
            )
        setting = found.floor_setting if found.plan is None else Setting.of(found.plan)
        if setting is not None:
            found = dataclasses.replace(found, sites=tuple(formulas.sites(setting)))
            if is_user_model(setting.model):
                found = dataclasses.replace(found, applied=tracer.about(setting)["report"])
        if timeline and setting is not None:
            found = dataclasses.replace(found, timeline=tracer.timeline(setting))
        if rungs and found.plan is not None:

            def below(setting: Setting) -> Prediction:  # a trace in spans takes seconds
                return exact(setting) if setting.span_count is None else quick(setting)

            found = dataclasses.replace(found, rungs=tuple(descend(found.plan, below)))
        return found


def _refuse_idle_spans(setting: Setting, formulas: Formulas) -> None:
    """Raise where a plan says spans of time, and no block of its network would go backward in more than one."""
    count = setting.span_count or 1
    if count > 1 and formulas.most_spans(setting) == 1:
        raise UsageError(
            f"--spans {count}: nothing in {setting.model} with T={setting.timesteps} is cut: no block of it can be, "
            "or one chunk of a convolution holds all time steps; give a smaller --chunk, or leave --spans out"
        )


def _confirmed(
    found: SearchResult,
    request: Request,
    quick: Callable[[Setting], Prediction],
    exact: Callable[[Setting], Prediction],
) -> SearchResult | None:
    """Return ``found`` with the traced parts of its plan; None if a trace of plan or floor tells another peak."""
    plan = None if found.plan is None else Setting.of(found.plan)
    for setting in (plan, found.floor_setting):
        if setting is not None:
            told = quick(setting).predicted_peak_bytes
            if exact(setting).predicted_peak_bytes != told:
                return None
    if plan is None:
        return found
    return dataclasses.replace(found, plan=request.plan(plan, exact(plan).parts))
