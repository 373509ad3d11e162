"""Make .venv, and say in .venv/constraints.txt which torch must stay.

A board's own torch (a Jetson's, built for its GPU) is seen through --system-site-packages and kept;
an ordinary interpreter gets a plain .venv. Runs on the interpreter that make was given, with
nothing installed.
"""

import shutil
import subprocess
import sys
from pathlib import Path

VENV = Path(".venv")
PYTHON = VENV / "bin" / "python"
CONSTRAINTS = VENV / "constraints.txt"
OLDEST_PYTHON, OLDEST_TORCH = (3, 10), (2, 4)
VERSION_OF = """
import sys
from importlib import metadata, util
found = util.find_spec(sys.argv[1])
print(found and metadata.version(sys.argv[1]) or "")
"""


def stop(text: str) -> None:
    """End with one line on stderr."""
    sys.exit(f"setup: {text}")


def installed(package: str) -> str | None:
    """Return the version of ``package`` that .venv sees."""
    done = subprocess.run(
        [str(PYTHON), "-c", VERSION_OF, package], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None


def create(*options: str) -> None:
    """Make .venv afresh."""
    shutil.rmtree(VENV, ignore_errors=True)
    done = subprocess.run([sys.executable, "-m", "venv", *options, str(VENV)], check=False)
    if done.returncode != 0:
        stop(f"{sys.executable} cannot make a venv; on Debian: sudo apt install python3-venv")


def pin(packages: tuple[str, ...]) -> None:
    """Write the versions that no later installation may replace."""
    found = [(name, installed(name)) for name in packages]
    CONSTRAINTS.write_text("".join(f"{name}=={version}\n" for name, version in found if version))


def main() -> None:
    """Make the environment, or with --pin-torch note the torch that was just installed."""
    if sys.argv[1:] == ["--pin-torch"]:
        return pin(("torch",))
    if sys.version_info < OLDEST_PYTHON:
        stop(
            f"Python {sys.version.split()[0]} is too old; name another: make PYTHON=python3.10 ..."
        )
    create("--system-site-packages", "--without-pip")
    torch = installed("torch")
    if torch is None:
        print(f"setup: making .venv with Python {sys.version.split()[0]}")
        create()
        CONSTRAINTS.write_text("")
        return None
    if tuple(int(part) for part in torch.split(".")[:2]) < OLDEST_TORCH:
        stop(f"this system's torch {torch} is older than 2.4; install a newer one first")
    print(
        f"setup: making .venv with Python {sys.version.split()[0]} and this system's torch {torch}"
    )
    create("--system-site-packages")
    return pin(("torch", "numpy"))


if __name__ == "__main__":
    main()
