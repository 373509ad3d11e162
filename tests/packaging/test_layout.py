"""What is built is what is there: packages, C sources, one copy of each module, the tested install."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TOP = {"revedge": "revedge", "export": "revedge.export", "devices": "revedge.devices"}


@pytest.fixture(scope="module")
def setuptools_table(root: Path) -> dict[str, Any]:
    """Return [tool.setuptools] of pyproject.toml."""
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))
    table: dict[str, Any] = project["tool"]["setuptools"]
    return table


def _packages(root: Path) -> list[str]:
    """Return every folder with an __init__.py under the three top folders, links not followed."""
    found = []
    for top, dotted in TOP.items():
        for folder, folders, files in os.walk(root / top):
            folders[:] = [one for one in folders if not (Path(folder) / one).is_symlink()]
            if "__init__.py" in files:
                parts = Path(folder).relative_to(root / top).parts
                found.append(".".join([dotted, *parts]))
    return sorted(found)


def test_package_list_equals_folders(root: Path, setuptools_table: dict[str, Any]) -> None:
    """A folder that is missing from the list would be missing from the wheel."""
    assert _packages(root) == sorted(setuptools_table["packages"])


def test_a_new_folder_is_noticed(tmp_path: Path) -> None:
    """The search for packages sees a new subpackage and does not follow the two links."""
    for name in ("revedge", "revedge/new", "export", "devices", "devices/boards"):
        (tmp_path / name).mkdir()
    for name in ("revedge", "revedge/new", "export", "devices"):
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "revedge/export").symlink_to("../export")

    assert _packages(tmp_path) == ["revedge", "revedge.devices", "revedge.export", "revedge.new"]


def test_links_point_to_the_mapped_folders(root: Path) -> None:
    """Type checkers and an uninstalled checkout find the mapped packages through two relative links."""
    for name in ("export", "devices"):
        assert (root / "revedge" / name).readlink() == Path("..") / name


def test_c_sources_exist_and_are_all_built(root: Path, setuptools_table: dict[str, Any]) -> None:
    """Each C file that is listed exists, and each that exists is listed."""
    listed = [source for one in setuptools_table["ext-modules"] for source in one["sources"]]
    there = [str(path.relative_to(root)) for path in (root / "revedge").rglob("*.c")]

    assert sorted(there) == sorted(listed)


def test_data_files_are_listed(root: Path, setuptools_table: dict[str, Any]) -> None:
    """Every file in a package that is no Python, C or prose is covered by package-data."""
    patterns = {
        (package, pattern)
        for package, all_of_it in setuptools_table["package-data"].items()
        for pattern in all_of_it
    }
    listed = set()
    for package, pattern in patterns:
        top = next(t for t, dotted in TOP.items() if dotted == package)
        listed |= set((root / top).glob(pattern))
    there = {
        path
        for top in TOP
        for path in (root / top).rglob("*")
        if path.is_file()
        and path.suffix not in {".py", ".c", ".h", ".md", ".pyc", ".so"}
        and not any(parent.is_symlink() for parent in path.parents)
    }

    assert there == listed


def test_one_copy_of_each_module() -> None:
    """`export` and `devices` are reached as revedge.export and revedge.devices only."""
    import revedge.devices.boards
    import revedge.export  # noqa: F401

    assert not {"export", "devices"} & set(sys.modules)


@pytest.mark.skipif(
    os.environ.get("REVEDGE_TEST_INSTALLED") != "1",
    reason="the checkout is under test, not a wheel",
)
def test_the_wheel_is_under_test(
    root: Path, package: Path, setuptools_table: dict[str, Any]
) -> None:
    """Under `make test` every package comes from site-packages, complete, and children see the same."""
    code = "import revedge, sys; print(revedge.__file__); print(sys.executable)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    child = Path(done.stdout.splitlines()[0])

    assert "site-packages" in package.parts
    assert child.parent == package
    for name in setuptools_table["packages"]:
        assert package.joinpath(*name.split(".")[1:], "__init__.py").is_file(), name
    boards = {path.name for path in (root / "devices/boards").glob("*.toml")}
    assert {path.name for path in (package / "devices/boards").glob("*.toml")} == boards
