"""Runs the child process that reads recordings, and gives its errors their classes again."""

import json
import os
import subprocess
from typing import Any

from revedge import child
from revedge.errors import DataError, UsageError


def run_child(task: dict[str, Any]) -> dict[str, Any]:
    """Run one task of ``revedge.data._build_cache`` in a process of its own; return its answer.

    Its stderr (progress) is this process's stderr.

    Raises:
        UsageError, DataError, ModuleNotFoundError: as the child did.
    """
    words = child.command("revedge.data._build_cache")
    environment = child.environment(
        OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", PYTHONWARNINGS="ignore"
    )
    text = json.dumps(task | {"parent_pid": os.getpid()})
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
    ) as process:
        try:
            stdout, _ = process.communicate(text)
        except BaseException:
            process.kill()
            raise
    lines = stdout.splitlines()
    try:
        answer = json.loads(lines[-1]) if lines else None
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        cause = f"ended with exit code {process.returncode}"
        if process.returncode < 0:
            cause = f"was ended by signal {-process.returncode} (9: out of memory, or killed)"
        raise DataError(f"the process that prepares {task['name']} {cause}; see its output above")
    if "error" in answer:
        _raise_again(answer)
    return answer


def _raise_again(answer: dict[str, Any]) -> None:
    text, kind = str(answer["error"]), answer.get("kind")
    if kind == "ModuleNotFoundError":
        raise ModuleNotFoundError(text, name=answer.get("module"))
    raise UsageError(text) if kind == "UsageError" else DataError(text)
