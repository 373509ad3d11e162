"""Texts speak of what is there: where links lead, and which environment variables are read."""

import re
from pathlib import Path

_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")
_VARIABLE = re.compile(r"environ(?:\.get\(|\[)\"(REVEDGE_\w+)\"")
SOURCES = ("revedge", "devices", "export")


def test_links_lead_somewhere(root: Path) -> None:
    """Every relative link of a Markdown file names a file or folder that is there."""
    texts = [
        path for name in (*SOURCES, "tests", "benchmarks") for path in (root / name).rglob("*.md")
    ]
    links = [
        (path, link)
        for path in (root / "README.md", root / "CHANGELOG.md", *texts)
        for link in _LINK.findall(path.read_text("utf-8"))
        if "://" not in link
    ]
    assert len(links) > 20
    assert [(path, link) for path, link in links if not (path.parent / link).exists()] == []


def test_the_readme_lists_the_environment_variables(root: Path) -> None:
    """Its table has every one that the package reads, and no other."""
    code = "".join(
        path.read_text("utf-8") for name in SOURCES for path in (root / name).rglob("*.py")
    )
    table = [
        line
        for line in (root / "README.md").read_text("utf-8").splitlines()
        if line.startswith("| `REVEDGE_")
    ]
    listed = {word for line in table for word in re.findall(r"REVEDGE_\w+", line.split("|")[1])}
    assert listed == set(_VARIABLE.findall(code))
