"""The checkout holds no address of a machine or registry, no long file, no stray top-level entry."""

import re
import subprocess
from pathlib import Path

import pytest

LONGEST_LINES = 400
TOP_LEVEL = {
    ".ci",
    ".gitignore",
    "CHANGELOG.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "benchmarks",
    "devices",
    "examples",
    "export",
    "pyproject.toml",
    "revedge",
    "tests",
}
# Folders of one machine, and where packages are downloaded from; the words are split so that this file passes.
FORBIDDEN = {
    "a home folder": re.compile(r"/(?:home|Users)/[a-z]\w*/|(?<![\w.~])/ro" + "ot/"),
    "a working folder": re.compile(r"(?<![\w.])/(?:work|opt|workspace)/\w"),
    "a file in /tmp": re.compile(r"(?<![\w.])/tmp/\w"),
    "a registry": re.compile(
        "(?:py" + r"pi\.org|download\.py" + r"torch\.org|--(?:extra-)?index" + "-url)"
    ),
}


@pytest.fixture(scope="module")
def tracked(root: Path) -> list[Path]:
    """Return the files that git tracks, links left out."""
    try:
        done = subprocess.run(
            ["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    paths = [root / name for name in done.stdout.split("\0") if name]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def test_no_machine_or_registry_in_any_file(root: Path, tracked: list[Path]) -> None:
    """No tracked text names a folder of one machine or an address to download packages from."""
    found = []
    for path in tracked:
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue
        for what, pattern in FORBIDDEN.items():
            match = pattern.search(text)
            if match:
                line = text.count("\n", 0, match.start()) + 1
                found.append(f"{path.relative_to(root)}:{line} names {what}: {match[0]}")

    assert found == []


def test_files_are_short(root: Path, tracked: list[Path]) -> None:
    """No source file is longer than 400 lines."""
    lengths = {
        str(path.relative_to(root)): path.read_text("utf-8").count("\n")
        for path in tracked
        if path.suffix in {".py", ".c", ".h"}
    }

    assert {name: n for name, n in lengths.items() if n > LONGEST_LINES} == {}


def test_nothing_stray_at_the_top(root: Path, tracked: list[Path]) -> None:
    """Nothing new stands at the top of the project by accident."""
    top = {path.relative_to(root).parts[0] for path in tracked}

    assert top - TOP_LEVEL == set()


def test_the_checkers_cover_everything(root: Path) -> None:
    """The lint configuration is strict, and turns warnings of tests into errors."""
    text = (root / "pyproject.toml").read_text("utf-8")

    assert 'strict = true\npackages = ["revedge"]' in text
    assert 'include = ["revedge", "tests", "examples"]' in text
    assert 'filterwarnings = ["error"' in text
    assert '"export".msg' in text
    assert '"devices".msg' in text
