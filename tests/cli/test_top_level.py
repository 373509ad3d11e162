"""The command `revedge` itself: help, version, exit codes, one-line errors."""

import argparse
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from revedge.cli import main as cli
from revedge.errors import BudgetError, UsageError

RunCommand = Callable[..., subprocess.CompletedProcess[str]]


class _Stub:
    """A command that raises what it is told."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.epilog = "example: revedge bench"

    def run(self, args: argparse.Namespace) -> int:
        if self.error is not None:
            raise self.error
        return 0


def _run(monkeypatch: pytest.MonkeyPatch, error: BaseException | None, *words: str) -> int:
    monkeypatch.setattr("revedge.cli.main.importlib.import_module", lambda name: _Stub(error))
    return cli.main(["bench", *words])


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    """`revedge --help` names each command with one line, and the exit codes."""
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])
    text = capsys.readouterr().out

    assert all(f"    {name} " in text.replace("\n", " ") for name in cli.COMMANDS)
    assert "exit codes" in text


def test_no_command_prints_help_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    """`revedge` alone shows the help and ends with 2."""
    assert cli.main([]) == 2
    assert "usage: revedge" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """`revedge --version` prints one line."""
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("revedge ")


def test_unknown_command_is_usage(capsys: pytest.CaptureFixture[str]) -> None:
    """A command that does not exist ends with 2 and names the choices."""
    with pytest.raises(SystemExit, match="2"):
        cli.main(["trian"])
    assert "invalid choice: 'trian'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (BudgetError("too few bytes"), 1, "too few bytes"),
        (UsageError("no such model"), 2, "no such model"),
        (
            PermissionError(13, "Permission denied", "out"),
            1,
            "out: permission denied; choose a folder that you can write",
        ),
        (OSError(28, "No space left on device", "out"), 1, "out: no space left on device"),
        (
            ModuleNotFoundError("No module named 'tonic'", name="tonic"),
            1,
            "this needs the package 'tonic'; install it with: pip install 'revedge[all]'",
        ),
        (ValueError("two\nlines"), 1, "not foreseen, ValueError: two lines; --debug shows where"),
    ],
    ids=["budget", "usage", "permission", "disk-full", "package", "bug"],
)
def test_errors_are_one_line(
    error: Exception,
    code: int,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each error is one line on stderr and an exit code; stdout stays empty."""
    assert _run(monkeypatch, error) == code
    printed = capsys.readouterr()

    assert printed.err == f"revedge: error: {text}\n"
    assert printed.out == ""


def test_json_error_is_the_last_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --json an error is also an object with its exit code."""
    assert _run(monkeypatch, UsageError("no such model"), "--json") == 2

    last = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(last) == {"error": "no such model", "exit_code": 2}


def test_traceback_only_with_debug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """--debug shows where an error came from, before the same line."""
    assert _run(monkeypatch, UsageError("no such model"), "--debug") == 2
    text = capsys.readouterr().err

    assert "Traceback" in text
    assert text.endswith("revedge: error: no such model\n")


def test_interrupt_ends_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C is no error of the program."""
    assert _run(monkeypatch, KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "revedge: interrupted\n"


def test_a_closed_pipe_is_quiet(
    revedge_command: RunCommand, child_env: dict[str, str], tmp_path: Path
) -> None:
    """`revedge devices list | head -1` prints no error."""
    import sys

    done = subprocess.run(
        f"{sys.executable} -m revedge.cli.main devices list --json | head -c 10",
        shell=True,
        cwd=tmp_path,
        env=child_env,
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stderr == ""
