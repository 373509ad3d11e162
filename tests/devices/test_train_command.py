"""`revedge train` as a user runs it: kills and resuming, stopping, running out of memory, refusals, --json."""

import json
import math
from pathlib import Path

import pytest

from revedge.devices.metrics_log import read_metrics
from revedge.planner.plan import Plan

from .conftest import MakeRun, make_plan
from .processes import DEADLINE_S, Start, digest, finish, newest, wait

DIGITS = ["--data", "digits", "--budget", "400MiB", "--out", "a"]


def test_a_plan_with_all_savings_trains(make_run: MakeRun, start: Start) -> None:
    """A strategy per run, slabs, updates in backward and SGD: the trainer does what the plan says, to the same bits."""
    wide = {"model_options": {"width": 16}, "micro_batch_size": 8, "optimizer": "sgd", "epochs": 2}
    runs = [
        make_run("plain", **wide),
        make_run(
            "saving",
            **wide,
            strategy=("store", "keep-spikes", "keep-conv"),
            update_in_backward=True,
        ),
        make_run("slabs", **wide, slab_bytes=1),
    ]
    for run in runs:
        result = finish(start("train", "--resume", str(run.path), "--json"))
        assert math.isfinite(result["test_accuracy"])
    page = runs[1].report.read_text("utf-8")
    assert "Measured peak" in page
    assert "Resident memory over the training" in page
    assert "measured time" in page
    assert "by real steps" in page
    digests = [digest(run) for run in runs]
    assert digests[0] == digests[1]  # slabs may round otherwise


def test_a_finished_run_is_not_trained_again(make_run: MakeRun, start: Start) -> None:
    """Resuming it prints the result that stands there; another --out over it is refused."""
    run = make_run("done", epochs=1)
    first = finish(start("train", "--resume", str(run.path), "--json"))
    changed = run.model.stat().st_mtime_ns
    assert finish(start("train", "--resume", str(run.path), "--json")) == first
    assert run.model.stat().st_mtime_ns == changed
    assert run.picture.is_file()


def test_out_of_memory_starts_again_one_rung_lower(make_run: MakeRun, start: Start) -> None:
    """A budget between the network alone and its batch: each rung is logged, predicted, shown, and the budget kept."""
    sizes = {
        "model": "ms-resnet10",
        "model_options": {"width": 32, "depth": 12},
        "batch_size": 48,
        "micro_batch_size": 48,
        "epochs": 1,
        "strategy": "store",
    }
    roomy = make_run("roomy", **sizes)
    peak = finish(start("train", "--resume", str(roomy.path), "--json"))["measured_peak_bytes"]
    lines = read_metrics(roomy.metrics)
    base = next(line["base_bytes"] for line in lines if line["event"] == "start")
    own = next(line["now_bytes"] for line in lines if line["event"] == "memory")
    budget = base + own + (peak - base - own) * 2 // 3
    tight = {"budget_bytes": budget, "predicted_peak_bytes": 0, "parts": {"base_bytes": 0}}
    run = make_run("tight", **sizes, **tight)
    process = start("train", "--resume", str(run.path), "--json")
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, err
    rungs = [line for line in read_metrics(run.metrics) if line["event"] == "rung"]
    assert rungs[0]["change"].startswith("store -> keep-")
    assert "memory" in rungs[0]["why"]
    assert f"warning: out of memory ({rungs[0]['why']}); store -> keep-" in err
    peaks = [rung["predicted_peak_bytes"] for rung in rungs]
    assert peaks == sorted(peaks, reverse=True)
    found = Plan.load(run.plan)
    assert found.predicted_peak_bytes == sum(found.parts.values()) == peaks[-1]
    assert found.budget_bytes == budget >= peaks[0]
    result = json.loads(out.splitlines()[-1])
    assert result["measured_peak_bytes"] <= budget
    assert result["predicted_peak_bytes"] == peaks[-1]
    assert result["restarts"] == len(rungs)
    page = run.report.read_text("utf-8")
    assert page.count("<td>a rung lower") == len(rungs)


def test_two_trainings_in_one_folder_are_refused(make_run: MakeRun, start: Start) -> None:
    """The second says who holds the folder, with exit code 1."""
    run = make_run("shared", epochs=5000)
    process = start("train", "--resume", str(run.path))
    wait(lambda: newest(run) >= 1, process)
    second = start("train", "--resume", str(run.path))
    _, err = second.communicate(timeout=DEADLINE_S)
    assert second.returncode == 1
    assert f"another training (process {process.pid}) is running" in err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--data", "digits", "--budget", "400MiB"], 2, "--out is missing"),
        (["--data", "digits", "--out", "a"], 2, "--budget is missing"),
        (["--budget", "1GiB", "--out", "a"], 2, "--data is missing"),
        (
            ["--data", "digits", "--budget", "lots", "--out", "a"],
            2,
            "size 'lots' is not understood",
        ),
        (["--data", "digits", "--budget", "900TiB", "--out", "a"], 1, "more than this machine has"),
        (["--data", "nothing", "--budget", "400MiB", "--out", "a"], 2, "nothing"),
        (["--data", "nmnist", "--data-dir", "no", "--budget", "400MiB", "--out", "a"], 2, "no"),
        ([*DIGITS, "--depth", "9..x"], 2, "--depth '9..x' is not understood"),
        ([*DIGITS, "--depth", "9..2"], 2, "--depth 9..2 is no range"),
        ([*DIGITS, "--timesteps", "0..4"], 2, "--timesteps 0..4 is not possible"),
        ([*DIGITS, "--model", "revsresnet", "--depth", "2..4"], 2, "needs a model"),
        ([*DIGITS, "--batch", "0"], 2, "--batch 0 is not possible"),
        ([*DIGITS, "--prefer", "size"], 2, "choose one of"),
        ([*DIGITS, "--prefer", "accuracy-per-byte"], 2, "--runs go together"),
        ([*DIGITS, "--runs", "nowhere"], 2, "--runs nowhere does not exist"),
        ([*DIGITS, "--runs", "begun"], 2, "--runs begun: this training is not finished"),
        ([*DIGITS, "--precision", "float16"], 2, "loss scaling"),
        ([*DIGITS, "--precision", "int4"], 2, "'int4' is not known"),
        (
            ["--plan", "plan.toml", "--precision", "float32", "--out", "a"],
            2,
            "--precision does not go with",
        ),
        (["--resume", "begun", "--depth", "3"], 2, "--depth does not go with --resume"),
        (["--plan", "no.toml", "--out", "a"], 2, "no such plan file"),
        (["--plan", "old.toml", "--out", "a"], 1, "version = 7"),
        (
            ["--plan", "plan.toml", "--model", "vgg5", "--out", "a"],
            2,
            "--model does not go with --plan",
        ),
        (
            ["--plan", "plan.toml", "--budget", "399MiB", "--out", "a"],
            1,
            "predicted peak is 400.0 MiB",
        ),
        (["--plan", "plan.toml", "--out", "/proc/self/new"], 1, "/proc/self/new cannot be written"),
        (["--plan", "plan.toml", "--out", "plan.toml"], 1, "plan.toml cannot be written"),
        (["--plan", "plan.toml", "--out", "begun"], 2, "continue it with --resume begun"),
        (["--resume", "nowhere"], 2, "--resume nowhere does not exist"),
        (["--resume", "empty"], 2, "--resume empty holds no training"),
        (["--resume", "begun", "--epochs", "9"], 2, "--epochs does not go with --resume"),
    ],
)
def test_refusals_are_one_line_with_the_right_exit_code(
    tmp_path: Path, make_run: MakeRun, revedge_command, words: list[str], code: int, message: str
) -> None:
    """Each says what is wrong before anything starts; with --json the same stands in the last line of stdout."""
    make_run("begun")
    (tmp_path / "empty").mkdir()
    make_plan().save(tmp_path / "plan.toml")
    old = make_plan().to_toml().replace("version = 1", "version = 7")
    (tmp_path / "old.toml").write_text(old)
    done = revedge_command("train", *words, "--json")
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["exit_code"] == code
    assert not (tmp_path / "a").exists()  # a refused training leaves nothing behind
    assert not (tmp_path / "a" / "config.json").exists()


def test_help_shows_an_example(revedge_command) -> None:
    """The options that scripts rely on stand there, and an example."""
    text = revedge_command("train", "--help").stdout
    options = "--data --data-dir --budget --epochs --seed --out --model --timesteps --resume --json"
    for option in options.split():
        assert option in text
    assert "revedge train --data digits --budget 400MiB" in text


def test_cuda_trains_with_the_same_loop(make_run: MakeRun, start: Start) -> None:
    """On a GPU the tiny training ends, and what torch reserves there counts."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    run = make_run("cuda", epochs=2, device="cuda", budget_bytes=8 << 30)
    assert finish(start("train", "--resume", str(run.path), "--json"))["test_accuracy"] is not None


def test_cuda_without_a_gpu_is_one_line(make_run: MakeRun, start: Start) -> None:
    """Asked for a GPU that is not there, training stops with what to do."""
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    run = make_run("cuda", device="cuda")
    process = start("train", "--resume", str(run.path))
    _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1
    assert "device 'cuda' is not there (torch sees no GPU); train with --device cpu" in err
