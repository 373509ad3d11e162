"""Models that are named by where their code lies: ``module:function`` or ``path/to/file.py:function``. Free of torch.

Naming a model runs its code: what the module does when it is imported, and the function, with the rights of the user
who types the command. It is imported as Python imports anything, never unpickled, and only in the processes that need
the network (those that trace, train, measure and export).

Where code is looked for: a module in the current folder first, then where Python finds any other (PYTHONPATH, what is
installed); a file at its path, its own folder first on the path for what it imports, as under ``python file.py``. Plans
and run folders hold a file's absolute path, a module's name as it was typed.
"""

import functools
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from revedge.errors import UsageError

_FORM = "module:function or path/to/file.py:function, as in net.py:build"


class ForeignError(Exception):
    """Stands, as the cause of an error, for one in a child process; its text is the traceback there."""


def is_user_model(name: str) -> bool:
    """Whether ``name`` says where code lies; names of the registry have no colon."""
    return ":" in name


def absolute(name: str) -> str:
    """Return ``name`` with the absolute path of its file; modules and names of the registry as they are.

    Raises:
        UsageError: it has a colon, but not the form of a name.
    """
    if not is_user_model(name):
        return name
    where, function = _parted(name)
    return f"{Path(where).expanduser().absolute()}:{function}" if _is_file(where) else name


def load(name: str) -> Callable[..., Any]:
    """Import the code that ``name`` says and return its function (or class, or any other callable).

    Raises:
        UsageError: there is no such module, file or function, it cannot be called, or importing it raises.
    """
    where, function = _parted(name)
    module = _imported_file(name, Path(where)) if _is_file(where) else _imported(name, where)
    found: Any = module
    for part in function.split("."):
        found = getattr(found, part, None)
    if found is None:
        known = sorted(n for n, v in vars(module).items() if callable(v) and not n.startswith("_"))
        raise UsageError(
            f"model {name!r}: {where} has no {function!r}; it has {', '.join(known) or 'nothing to call'}"
        )
    if not callable(found):
        raise UsageError(
            f"model {name!r}: {function} is {type(found).__name__}, not a function; name one that returns the network"
        )
    return found  # type: ignore[no-any-return]


def raised(name: str, doing: str, error: BaseException) -> UsageError:
    """Return the error that says that the user's code has raised ``error``; raise it from that one."""
    text = " ".join(str(error).split())[:300]
    return UsageError(
        f"model {name!r}: {doing} raised {type(error).__name__}{f': {text}' if text else ''}; "
        "--debug shows where"
    )


def traceback_text(error: BaseException) -> str:
    """Return the traceback of ``error`` and its causes as text, for another process to show."""
    import traceback

    return "".join(traceback.format_exception(error))


def digest(name: str) -> str | None:
    """Return the SHA-256 of the code of ``name``: its file, and files beside it that it imports. Runs none of it.

    Followed are imports of modules in the folder that the file is found from (of installed code, of the same package).
    None for names of the registry, and for a module whose source cannot be found without running code.
    """
    if not is_user_model(name):
        return None
    found = _source(name)
    if found is None:
        return None
    import hashlib  # brings 4 MiB of OpenSSL, which a supervisor need not have

    sha = hashlib.sha256()
    for file in sorted(_with_imports(*found)):
        sha.update(file.read_bytes() + b"\0")
    return sha.hexdigest()


def require_unchanged(name: str, sha256: str | None) -> None:
    """Raise unless the code of ``name`` is still what ``sha256`` was taken of; None asks nothing.

    Raises:
        UsageError: it has changed.
    """
    now = None if sha256 is None else digest(name)
    if sha256 is not None and now is not None and now != sha256:
        raise UsageError(
            f"model {name!r}: its code has changed since it was planned (SHA-256 {sha256[:12]}, now {now[:12]}); "
            "plan and train it again, or bring the old code back"
        )


def _parted(name: str) -> tuple[str, str]:
    where, _, function = name.rpartition(":")
    if not where or not all(part.isidentifier() for part in function.split(".")):
        raise UsageError(f"model {name!r} is not understood; name it as {_FORM}")
    return where, function


def _is_file(where: str) -> bool:
    return where.endswith(".py") or "/" in where or os.sep in where


def _imported(name: str, where: str) -> Any:
    _first_on_path(os.getcwd())
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{where}.".startswith(f"{error.name}."):
            raise raised(name, "importing it", error) from error
        raise UsageError(
            f"model {name!r}: there is no module {error.name!r} in {os.getcwd()} or where Python looks; go to its "
            "folder, or name the file, as in path/to/net.py:build"
        ) from None
    except (MemoryError, UsageError):
        raise
    except (Exception, SystemExit) as error:
        raise raised(name, "importing it", error) from error


def _imported_file(name: str, path: Path) -> Any:
    path = path.expanduser().absolute()
    if not path.is_file():
        raise UsageError(f"model {name!r}: there is no file {path}; name it as {_FORM}")
    try:
        return _file_module(str(path), path.stat().st_mtime_ns)
    except (MemoryError, UsageError):
        raise
    except (Exception, SystemExit) as error:
        raise raised(name, "importing it", error) from error


@functools.lru_cache(maxsize=64)
def _file_module(path: str, changed_ns: int) -> Any:
    """Import a file once, and again after it has changed."""
    import importlib.machinery
    import importlib.util

    del changed_ns
    _first_on_path(os.path.dirname(path))
    own_name = f"user_model_{Path(path).stem}"  # no module's that it could be taken for
    loader = importlib.machinery.SourceFileLoader(own_name, path)
    spec = importlib.util.spec_from_file_location(own_name, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[own_name] = module  # where data classes look for it
    loader.exec_module(module)
    return module


def _first_on_path(folder: str) -> None:
    if folder not in sys.path:
        sys.path.insert(0, folder)


def _source(name: str) -> tuple[Path, Path, bool] | None:
    """Return the file of ``name``, the folder that it is found from, and whether that is the user's own."""
    where, _ = _parted(name)
    if _is_file(where):
        path = Path(where).expanduser().absolute()
        return (path, path.parent, True) if path.is_file() else None
    here = os.getcwd()
    for folder in dict.fromkeys([here, *(each or here for each in sys.path)]):
        found = _file_of(Path(folder), tuple(where.split(".")))
        if found:
            return found[-1], Path(folder), folder == here
    return None


def _file_of(folder: Path, parts: tuple[str, ...]) -> list[Path]:
    """Files that importing a module runs: of its packages, and its own as the last; none if it is not there."""
    files = []
    for count in range(1, len(parts) + 1):
        base = folder.joinpath(*parts[:count])
        package = base / "__init__.py"
        if package.is_file():
            files.append(package)
        elif count == len(parts) and base.with_name(f"{base.name}.py").is_file():
            files.append(base.with_name(f"{base.name}.py"))
        elif not base.is_dir() or count == len(parts):
            return []
    return files


def _with_imports(file: Path, folder: Path, own: bool) -> set[Path]:
    found: set[Path] = set()
    pending = [file, *_packages(file, folder)]
    top = file.relative_to(folder).parts[0].removesuffix(".py")
    while pending:
        each = pending.pop()
        if each in found:
            continue
        found.add(each)
        for parts in _imports(each, folder):
            if parts[0] != "revedge" and (own or parts[0] == top):
                pending += _file_of(folder, parts)
    return found


def _packages(file: Path, folder: Path) -> list[Path]:
    parts = file.relative_to(folder).parts[:-1]
    return _file_of(folder, parts) if parts else []


def _imports(file: Path, folder: Path) -> Iterator[tuple[str, ...]]:
    """Yield the dotted names that a file imports anywhere, as parts; also ``a.b`` of ``from a import b``."""
    import ast

    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return
    package = file.relative_to(folder).parts[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            yield from (each for each in [base, *((*base, a.name) for a in node.names)] if each)
