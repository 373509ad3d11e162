"""Imports point one way. Late imports inside functions count, too; only cli may import anything."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from revedge.cli.main import COMMANDS

BASE = {"binomial", "errors", "units", "folders", "allocator", "child", "user_code"}
MODEL_SIDE = BASE | {"need_torch", "kernels", "neurons", "engine", "models"}
# What each part may import, besides itself.
ALLOWED: dict[str, set[str]] = {
    "binomial": set(),
    "errors": set(),
    "units": {"errors"},
    "folders": set(),
    "allocator": set(),
    "child": {"errors", "units", "allocator"},
    "need_torch": {"errors"},
    "user_code": {"errors"},
    "kernels": BASE | {"need_torch"},
    "neurons": BASE | {"need_torch", "kernels"},
    "engine": BASE | {"need_torch", "kernels", "neurons"},
    "models": BASE | {"need_torch", "kernels", "neurons", "engine"},
    "data": {"errors", "units", "folders", "child"},
    "planner": MODEL_SIDE,
    "export": MODEL_SIDE,
    "devices": MODEL_SIDE | {"planner", "data"},
}
WITHOUT_TORCH = {"binomial", "errors", "units", "folders", "allocator", "user_code", "data"}


def _modules(package: Path) -> Iterator[tuple[str, Path]]:
    """Yield (part, file) of every module; a part is a subpackage or a file at the top."""
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).parts
        yield (parts[0].removesuffix(".py"), path)
    for name in ("export", "devices"):  # rglob does not follow the links of a checkout
        if (package / name).is_symlink():
            for path in sorted((package / name).resolve().rglob("*.py")):
                yield name, path


def imports_of(source: str) -> set[str]:
    """Return the dotted names that ``source`` imports anywhere, those for type checkers included."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the arrow: write revedge.part.module"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def parts_of(names: set[str], known: set[str]) -> set[str]:
    """Return which parts of revedge stand in dotted ``names``."""
    second = {name.split(".")[1] for name in names if name.startswith("revedge.")}
    return second & known


@pytest.fixture(scope="module")
def sources(package: Path) -> list[tuple[str, Path, set[str]]]:
    """Return (part, file, imported names) of every module of the revedge under test."""
    return [(part, path, imports_of(path.read_text("utf-8"))) for part, path in _modules(package)]


def test_every_part_has_a_rule(sources: list[tuple[str, Path, set[str]]]) -> None:
    """A new part must say what it may import."""
    assert {part for part, _, _ in sources} == {*ALLOWED, "cli", "__init__", "__main__"}


def test_imports_point_one_way(sources: list[tuple[str, Path, set[str]]]) -> None:
    """No module imports a part that stands above or beside its own."""
    known = {*ALLOWED, "cli"}
    wrong = [
        f"{path.name} of {part} imports {', '.join(sorted(extra))}"
        for part, path, names in sources
        if part not in ("cli", "__init__", "__main__")
        and (extra := parts_of(names, known) - ALLOWED[part] - {part})
    ]

    assert wrong == []


def test_a_wrong_arrow_is_seen() -> None:
    """Imports inside functions and for type checkers are found, in each way of writing them."""
    source = (
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from revedge.models.net import SpikingNet\n"
        "def f():\n    import revedge.planner.plan\n    from revedge import devices\n"
    )
    parts = parts_of(imports_of(source), {*ALLOWED, "cli"})

    assert parts == {"models", "planner", "devices"}


def test_parts_without_torch(sources: list[tuple[str, Path, set[str]]]) -> None:
    """errors, units and data never import torch, not even late."""
    wrong = [
        path.name
        for part, path, names in sources
        if part in WITHOUT_TORCH and any(name.split(".")[0] == "torch" for name in names)
    ]

    assert wrong == []


def test_commands_import_late(sources: list[tuple[str, Path, set[str]]]) -> None:
    """A command's module imports nothing heavy until it runs, so that its --help answers at once."""
    heavy = {"torch", "numpy", "onnxruntime", "onnx", "tonic", "sklearn", "matplotlib", "psutil"}
    wrong = []
    for part, path, _ in sources:
        if part != "cli" or path.stem.replace("_", "-") not in COMMANDS:
            continue  # what a command imports late may import what it likes
        tree = ast.parse(path.read_text("utf-8"))
        top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = imports_of("\n".join(ast.unparse(node) for node in top))
        tops = {name.split(".")[0] for name in names} & heavy
        ours = parts_of(names, set(ALLOWED)) - BASE
        if tops or ours:
            wrong.append(f"{path.name}: {', '.join(sorted(tops | ours))}")

    assert wrong == []
