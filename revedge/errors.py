"""Every error that revedge raises on purpose.

RevedgeError                  exit code 1: understood, but the answer is no
+- UsageError                 exit code 2: what was typed names something that is not there, or does not parse
+- BudgetError                the bytes asked for are too few; carries the floor
+- PlanFormatError            a plan file that cannot be read, or of another version
+- DataError                  a recording, image or cache that is damaged or does not fit
+- CheckpointError            a checkpoint that is damaged or belongs to another training
+- ReversibilityError         a recomputed value is not the one of the forward pass
|  +- GridRangeError          a value left the range in which sums are exact
+- ExportError                an exported file does not do what the trained network does
+- DeviceError                a board or accelerator cannot do what was asked
+- TorchMissingError          torch is not installed, and this needs it

Each message says what was asked (value and unit), why not, and what to do instead.
"""


class RevedgeError(Exception):
    """Base of all errors that revedge raises on purpose."""

    exit_code = 1


class UsageError(RevedgeError, ValueError):
    """What was typed names something that does not exist, or does not parse."""

    exit_code = 2


class BudgetError(RevedgeError, ValueError):
    """A budget that nothing which was asked for fits into."""

    def __init__(self, message: str, *, floor_bytes: int | None = None) -> None:
        super().__init__(message)
        self.floor_bytes = floor_bytes


class PlanFormatError(RevedgeError, ValueError):
    """A plan file that cannot be read, or is of another version."""


class DataError(RevedgeError, ValueError):
    """A recording, image or frame cache that is damaged or does not fit."""


class CheckpointError(RevedgeError, ValueError):
    """A checkpoint that is damaged or belongs to another training."""


class ReversibilityError(RevedgeError, RuntimeError):
    """A value rebuilt in the backward pass is not the one of the forward pass."""


class GridRangeError(ReversibilityError):
    """A value left the range in which float32 sums on the grid are exact."""


class ExportError(RevedgeError, RuntimeError):
    """An exported file does not do what the trained network does."""


class DeviceError(RevedgeError, RuntimeError):
    """A board or accelerator cannot do what was asked."""


class TorchMissingError(RevedgeError, ModuleNotFoundError):
    """torch is not installed, and what was asked for needs it."""
