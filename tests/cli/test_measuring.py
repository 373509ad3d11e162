"""`revedge verify` and `revedge bench`: real steps in processes of their own."""

import json

import pytest

SMALL = ["--in-shape", "2,8,8", "--timesteps", "2", "--batch", "2"]


def _last(done) -> dict:
    return json.loads(done.stdout.splitlines()[-1])


def test_verify_compares_every_strategy(revedge_command):
    """The first row is plain autograd, the second `store`; all are identical to `store` and close to plain."""
    done = revedge_command("verify", "--model", "revsresnet11", *SMALL, "--json")
    assert done.returncode == 0, done.stderr
    answer = _last(done)
    names = [row["strategy"] for row in answer["rows"]]
    assert names == ["plain", "store", "keep-conv", "keep-spikes", "reverse"]
    assert answer["identical"] is True
    for row in answer["rows"][1:]:
        assert row["identical"] is True
        # Float32 sums in another order, as derived in tests/engine/engine_checks.py.
        assert 0.0 < row["max_relative_error"] < 1e-4
        assert row["peak_bytes"] > 50 * 2**20
        assert row["cpu_s"] > 0.0
    assert "Saving memory changes no number" in done.stdout


def test_verify_in_slabs(monkeypatch, capsys):
    """The size of the slabs reaches every step that is measured; a size that is none is a usage error."""
    from revedge.cli import main, verify

    jobs = []

    def spawn(job):
        jobs.append(job)
        return {
            "strategy": job["strategy"], "gradient_sha256": "same", "statistics_sha256": "same",
            "max_relative_error": 0.0, "peak_bytes": 1, "anon_peak_bytes": 1, "cpu_s": 1.0,
        }  # fmt: skip

    monkeypatch.setattr(verify, "spawn", spawn)
    assert main.main(["verify", "--model", "revsresnet11", "--slab", "1MiB", "--json"]) == 0
    assert {job["slab_bytes"] for job in jobs} == {1 << 20}
    assert main.main(["verify", "--model", "revsresnet11", "--slab", "wide"]) == 2
    assert "wide" in capsys.readouterr().err
    jobs.clear()
    few = ["--spans", "4", "--membranes", "2", "--chunk", "1KiB"]
    assert main.main(["verify", "--model", "revsresnet11", *few, "--json"]) == 0
    asked = {(job["span_count"], job["membrane_count"], job["chunk_bytes"]) for job in jobs}
    assert asked == {(4, 2, 1024)}
    capsys.readouterr()
    assert main.main(["verify", "--model", "revsresnet11", *few[2:]]) == 2
    assert "--membranes 2 are those of spans" in capsys.readouterr().err


def test_verify_fails_when_a_strategy_differs(monkeypatch, capsys):
    """A digest that is not that of `store` makes the answer no, with exit code 1."""
    from revedge.cli import main, verify

    def spawn(job):
        digest = "other" if job["strategy"] == "reverse" else "same"
        return {
            "strategy": job["strategy"], "gradient_sha256": digest, "statistics_sha256": "x",
            "max_relative_error": 0.0, "peak_bytes": 1, "anon_peak_bytes": 1, "cpu_s": 1.0,
        }  # fmt: skip

    monkeypatch.setattr(verify, "spawn", spawn)
    assert main.main(["verify", "--model", "revsresnet11", "--json"]) == 1
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [row["identical"] for row in rows] == [True, True, True, True, False]


def test_bench_rows(revedge_command):
    """Every strategy has its bytes, its time and the same gradient; `smallest` is the least of them."""
    done = revedge_command("bench", "--net", "revsresnet11", *SMALL, "--repeats", "1", "--json")
    assert done.returncode == 0, done.stderr
    rows = _last(done)["rows"]
    assert [row["strategy"] for row in rows] == ["store", "keep-conv", "keep-spikes", "reverse"]
    assert len({(row["gradient_sha1"], row["loss"]) for row in rows}) == 1
    for row in rows:
        assert row["anon_peak_bytes"] > 0
        assert row["tracked_peak_bytes"] > 0
    assert rows[0]["tracked_peak_bytes"] > rows[-1]["tracked_peak_bytes"]


def test_bench_of_several_nets_draws_a_picture(revedge_command, tmp_path):
    """Every net with every T and batch is a row; the picture says which is which."""
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    few = ["--in-shape", "2,8,8", "--timesteps", "1,2", "--batch", "2", "--repeats", "1"]
    nets = ["--net", "revsresnet11,vgg5", "--strategy", "reverse+slabs=1KiB"]
    done = revedge_command("bench", *nets, *few, "--picture", str(tmp_path / "a.svg"), "--json")
    assert done.returncode == 0, done.stderr
    answer = _last(done)
    assert [(row["net"], row["timesteps"], row["strategy"]) for row in answer["rows"]] == [
        (net, timesteps, "reverse+slabs=1KiB")
        for net in ("revsresnet11", "vgg5")
        for timesteps in (1, 2)
    ]
    assert answer["failed"] == []
    assert answer["picture"] == str(tmp_path / "a.svg")
    assert f"picture: {tmp_path / 'a.svg'}" in done.stdout
    svg = (tmp_path / "a.svg").read_text()
    assert svg.count("CPU time of a step [s]") == 4
    assert "vgg5  T=2  batch 2" in svg
    assert "reverse+slabs=1KiB" in svg
    assert [path.name for path in tmp_path.iterdir()] == ["a.svg"]


def test_update_in_backward_has_the_same_gradient_and_holds_none(revedge_command):
    """The digest is that of the stored gradients; after a step none is left; the loss is that before any update.

    The row says that it was so, and its tracked bytes hold no weight, though each is updated within the step: what is
    left is a gradient less than without.
    """
    words = ["bench", "--net", "revsresnet11", *SMALL, "--repeats", "2", "--strategy", "reverse"]
    done = [revedge_command(*words, *flag, "--json") for flag in ([], ["--update-in-backward"])]
    kept, freed = (_last(one)["rows"][0] for one in done)
    assert freed["gradient_sha1"] == kept["gradient_sha1"]
    assert freed["loss"] == kept["loss"]
    assert kept["gradients_bytes"] > 0
    assert freed["gradients_bytes"] == 0
    assert [kept["update_in_backward"], freed["update_in_backward"]] == [False, True]
    assert freed["tracked_peak_bytes"] < kept["tracked_peak_bytes"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["verify", "--model", "revsresnet22"], "did you mean"),
        (["verify", "--model", "vgg5", "--timesteps", "0"], "--timesteps 0"),
        (["verify", "--model", "vgg5", "--in-shape", "3,32"], "channels,height,width"),
        (["bench", "--net", "vgg5", "--strategy", "magic"], "keep-conv"),
        (["bench", "--net", "nope"], "nope"),
        (["bench", "--net", "vgg5", "--batch", "2,x"], "--batch '2,x'"),
        (["bench", "--net", "vgg5", "--timesteps", "0"], "--timesteps 0"),
        (["bench", "--net", "vgg5", "--picture", "a.png"], ".svg"),
        (["bench", "--net", "vgg5", "--picture", "nowhere/a.svg"], "nowhere"),
        (["bench", "--net", "vgg5", "--update-in-backward", "--strategy", "plain"], "plain"),
    ],
)
def test_usage_errors(revedge_command, words, message):
    """A wrong name or number is one line and exit code 2, also when the child finds it."""
    done = revedge_command(*words)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
