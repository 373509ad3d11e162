"""The options of every command. Scripts rely on these names: a change here is a change for users."""

import argparse

import pytest

from revedge.cli.main import COMMANDS, build_parser

COMMON = {"--debug", "--help", "--json", "-h"}
FROZEN: dict[str, set[str]] = {
    "train": {
        "--batch",
        "--budget",
        "--checkpoint-every-s",
        "--data",
        "--data-dir",
        "--depth",
        "--device",
        "--epochs",
        "--finish",
        "--lr",
        "--chunk",
        "--membranes",
        "--micro-batch",
        "--model",
        "--neuron",
        "--optimizer",
        "--option",
        "--out",
        "--plan",
        "--precision",
        "--prefer",
        "--resume",
        "--runs",
        "--seed",
        "--slab",
        "--spans",
        "--strategy",
        "--threads",
        "--timesteps",
        "--update-in-backward",
        "--width",
    },
    "plan": {
        "--accelerator",
        "--batch",
        "--budget",
        "--classes",
        "--data",
        "--data-dir",
        "--depth",
        "--device",
        "--in-shape",
        "--chunk",
        "--membranes",
        "--micro-batch",
        "--model",
        "--neuron",
        "--no-times",
        "--optimizer",
        "--option",
        "--out",
        "--plan",
        "--precision",
        "--prefer",
        "--report",
        "--runs",
        "--slab",
        "--spans",
        "--static",
        "--strategy",
        "--threads",
        "--timesteps",
        "--update-in-backward",
        "--verify",
        "--width",
    },
    "verify": {
        "--batch",
        "--classes",
        "--in-shape",
        "--chunk",
        "--membranes",
        "--model",
        "--neuron",
        "--slab",
        "--spans",
        "--static",
        "--threads",
        "--timesteps",
    },
    "export": {
        "--batch",
        "--data-dir",
        "--cost",
        "--finish-epochs",
        "--format",
        "--numerics",
        "--opset",
        "--out",
        "--steps",
        "--target",
        "--weights",
        "-o",
        "run",
    },
    "run": {
        "--batch",
        "--data",
        "--data-dir",
        "--input",
        "--low-memory",
        "--stream",
        "--threads",
        "--window-us",
        "model",
    },
    "inspect": {"model"},
    "verify-export": {"--golden", "--provider", "--threads", "model"},
    "bench": {
        "--batch",
        "--classes",
        "--depth",
        "--in-shape",
        "--net",
        "--neuron",
        "--picture",
        "--repeats",
        "--rounds",
        "--static",
        "--strategy",
        "--threads",
        "--timesteps",
        "--update-in-backward",
        "--width",
    },
    "devices": {"action"},
    "doctor": set(),
}
# What the commands were promised to take, whatever else they take.
PROMISED: dict[str, set[str]] = {
    "train": {
        "--data",
        "--data-dir",
        "--budget",
        "--epochs",
        "--seed",
        "--out",
        "--model",
        "--timesteps",
        "--resume",
        "--json",
    },
    "plan": {
        "--data",
        "--model",
        "--budget",
        "--in-shape",
        "--classes",
        "--verify",
        "--device",
        "--prefer",
        "--out",
        "--json",
    },
    "verify": {"--model", "--timesteps", "--batch", "--json"},
    "export": {"--format", "-o", "--json"},
    "run": {"--data", "--json"},
    "bench": {
        "--net",
        "--strategy",
        "--timesteps",
        "--batch",
        "--threads",
        "--update-in-backward",
        "--json",
    },
}


def _parser_of(command: str) -> argparse.ArgumentParser:
    """Return the subparser of one command."""
    actions = build_parser(command)._actions
    commands = next(one for one in actions if isinstance(one, argparse._SubParsersAction))
    parser: argparse.ArgumentParser = commands.choices[command]
    return parser


def options_of(command: str) -> set[str]:
    """Return every option string, and the names of positional arguments, of one command."""
    names: set[str] = set()
    for action in _parser_of(command)._actions:
        names |= set(action.option_strings) or {action.dest}
    return names


@pytest.mark.parametrize("command", COMMANDS)
def test_options_are_frozen(command: str) -> None:
    """The options are exactly those listed here."""
    assert options_of(command) == FROZEN[command] | COMMON


@pytest.mark.parametrize("command", PROMISED)
def test_promised_options_are_there(command: str) -> None:
    """The names that scripts were promised exist."""
    assert PROMISED[command] - options_of(command) == set()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each --help ends with a command line that can be copied, and explains every option."""
    parser = _parser_of(command)
    text = parser.format_help()

    assert f"revedge {command} " in (parser.epilog or "")
    assert "example" in (parser.epilog or "")
    assert f"revedge {command}" in text
    silent = [action.dest for action in parser._actions if not action.help]
    assert [dest for dest in silent if dest != "action"] == []
