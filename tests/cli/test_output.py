"""What commands print: text, then one JSON object; aligned tables."""

import argparse
import json

import pytest

from revedge.cli.output import emit, table


def test_json_is_the_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    """With --json the object follows the text on a line of its own."""
    emit(argparse.Namespace(json=True), "text", {"size_bytes": 3})
    lines = capsys.readouterr().out.splitlines()

    assert lines[0] == "text"
    assert json.loads(lines[-1]) == {"size_bytes": 3}


def test_without_json_text_only(capsys: pytest.CaptureFixture[str]) -> None:
    """Without --json people see no JSON."""
    emit(argparse.Namespace(json=False), "text", {"size_bytes": 3})

    assert capsys.readouterr().out == "text\n"


def test_nan_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """NaN is not JSON: a script would stumble over it."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        emit(argparse.Namespace(json=True), "", {"loss": float("nan")})


def test_tables_align() -> None:
    """Numbers stand to the right, text to the left, None is a dash, no line ends in blanks."""
    text = table(("name", "n", ""), [("a", 5, "x"), ("long", None, ""), ("b", 100, "")])

    assert text.splitlines() == ["name    n", "a       5  x", "long    -", "b     100"]
    assert table(("a", "b"), []) == "a  b"
