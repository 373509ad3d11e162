"""What would change nothing is known before it is tried."""

import pytest
from engine_checks import NETS, fresh_net, net_input, train_step

from revedge.engine.in_vain import why_not_in_spans, why_not_inverted, why_nothing_to_cut


@pytest.mark.parametrize("name", NETS)
def test_what_is_never_cut_is_known(name, monkeypatch):
    """With chunks of a plane, a net goes backward in spans exactly where nothing speaks against it."""
    monkeypatch.setattr("revedge.engine.signal.CHUNK_BYTES", 1)
    config = NETS[name] | {"timesteps": 4}
    net = fresh_net(config, "reverse")
    net.set_span_count(4)
    train_step(net, net_input(config))
    most = max(run.most_spans for run in net.runs())
    assert most == (4 if why_nothing_to_cut(net.runs()) is None else 1)
    assert why_not_in_spans(net.runs()) == why_nothing_to_cut(net.runs())
    assert (why_not_inverted(net.runs()) is None) == name.endswith("reversible")


def test_a_strategy_that_keeps_what_spans_make_again():
    """Spans are of those runs that can be cut; the strategies of the others do not matter."""
    net = fresh_net(NETS["ms-resnet"], "reverse")
    kinds = [type(run).__name__ for run in net.runs()]
    net.set_strategy(["store" if kind == "Residual" else "reverse" for kind in kinds])
    why = why_not_in_spans(net.runs())
    assert (
        why
        == "store keeps what spans of time would make again; they are of keep-spikes and reverse"
    )
    assert why_nothing_to_cut(net.runs()) is None
    net.set_strategy(["keep-spikes" if kind == "Residual" else "store" for kind in kinds])
    assert why_not_in_spans(net.runs()) is None
