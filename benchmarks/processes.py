"""The processes of a training, as benchmarks that disturb it need to know them."""

from pathlib import Path


def trainer_of(supervisor: int) -> int | None:
    """Return the process id of a supervisor's trainer, None where it has none."""
    try:
        children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
        for child in children:
            if b"revedge.devices.trainer" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
    except OSError:
        pass
    return None
