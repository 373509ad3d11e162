"""torch costs seconds and 200 MiB: what does not need it does not import it."""

import subprocess
from collections.abc import Callable

import pytest

import revedge

RunPython = Callable[..., subprocess.CompletedProcess[str]]
HEAVY = "{'torch', 'numpy', 'tonic', 'sklearn', 'onnx', 'onnxruntime', 'matplotlib', 'sympy'}"
MAIN = (
    "from revedge.cli.main import main\ntry:\n    main({words!r})\nexcept SystemExit:\n    pass\n"
)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--help"],
        ["--version"],
        ["devices", "list"],
        ["devices", "list", "--json"],
        ["devices", "show", "jetson-nano"],
        ["devices", "probe"],
        ["doctor", "--help"],
        ["train", "--help"],
        ["plan", "--help"],
        ["verify", "--help"],
        ["export", "--help"],
        ["run", "--help"],
        ["inspect", "--help"],
        ["verify-export", "--help"],
        ["bench", "--help"],
    ],
    ids=" ".join,
)
def test_command_imports_no_torch(words: list[str], run_python: RunPython) -> None:
    """`revedge --help`, every command's --help and `revedge devices` import nothing heavy."""
    code = MAIN.format(words=words) + f"import sys\nprint(sorted({HEAVY} & set(sys.modules)))"
    done = run_python("-c", code)

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_import_revedge_imports_no_torch(run_python: RunPython) -> None:
    """`import revedge` is cheap, names that need no torch too, and names that need it load it."""
    code = (
        "import sys, revedge\n"
        "print(sorted(name for name in sys.modules if name.startswith('revedge')))\n"
        "revedge.parse_bytes('1MiB'), revedge.BudgetError, revedge.Plan, revedge.__version__\n"
        f"print(sorted({HEAVY} & set(sys.modules)))\n"
        "revedge.LIFNode\n"
        "print('torch' in sys.modules)\n"
    )
    done = run_python("-c", code)

    assert done.stdout.splitlines() == ["['revedge']", "[]", "True"], done.stderr


def test_public_names_are_sorted_and_there() -> None:
    """__all__ is sorted and each of its names can be had; dir() shows them, others raise."""
    names = [name for name in revedge.__all__ if not name.startswith("__")]
    classes = [name for name in names if name[0].isupper()]
    functions = [name for name in names if name[0].islower()]

    assert sorted(classes) + sorted(functions) == names
    assert all(getattr(revedge, name) is not None for name in revedge.__all__)
    assert set(revedge.__all__) <= set(dir(revedge))
    with pytest.raises(AttributeError, match="'revedge' has no attribute 'LIFNod'"):
        revedge.LIFNod  # type: ignore[attr-defined]  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


PACKAGES = [
    "revedge.data",
    "revedge.devices",
    "revedge.engine",
    "revedge.export",
    "revedge.kernels",
    "revedge.models",
    "revedge.neurons",
    "revedge.planner",
]


@pytest.mark.parametrize("name", PACKAGES)
def test_subpackages_export_what_they_say(name: str) -> None:
    """Every name in a subpackage's __all__ can be had, once each."""
    from importlib import import_module

    module = import_module(name)
    exported: list[str] = list(getattr(module, "__all__", []))

    assert len(exported) == len(set(exported))
    assert [one for one in exported if not hasattr(module, one)] == []
