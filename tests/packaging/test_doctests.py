"""Examples in docstrings give what they say."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

import revedge

PACKAGE = Path(revedge.__file__).parent


def _modules_with_examples() -> list[str]:
    found = []
    for folder in (PACKAGE, PACKAGE / "export", PACKAGE / "devices"):
        pattern = "**/*.py" if folder == PACKAGE else "*.py"
        for path in sorted(folder.glob(pattern)):
            if ">>>" in path.read_text("utf-8"):
                parts = path.relative_to(PACKAGE).with_suffix("").parts
                found.append(".".join(["revedge", *parts]))
    return sorted(set(found))


@pytest.mark.parametrize("name", _modules_with_examples())
def test_docstring_examples(name: str) -> None:
    """Each example of the module gives what its docstring shows."""
    result = doctest.testmod(import_module(name), verbose=False)

    assert result.attempted > 0
    assert result.failed == 0
