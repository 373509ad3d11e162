"""Train spiking networks inside a RAM limit, with exact gradients, and ship what was trained.

Public names are loaded when they are first used: ``import revedge`` imports no torch.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from revedge.errors import BudgetError as BudgetError
    from revedge.errors import CheckpointError as CheckpointError
    from revedge.errors import DataError as DataError
    from revedge.errors import DeviceError as DeviceError
    from revedge.errors import ExportError as ExportError
    from revedge.errors import GridRangeError as GridRangeError
    from revedge.errors import PlanFormatError as PlanFormatError
    from revedge.errors import RevedgeError as RevedgeError
    from revedge.errors import ReversibilityError as ReversibilityError
    from revedge.errors import UsageError as UsageError
    from revedge.models import SpikingNet as SpikingNet
    from revedge.models import create as create
    from revedge.neurons import IFNode as IFNode
    from revedge.neurons import LIFNode as LIFNode
    from revedge.neurons import ParametricLIFNode as ParametricLIFNode
    from revedge.neurons import ReversibleNode as ReversibleNode
    from revedge.neurons import detach_net as detach_net
    from revedge.neurons import reset_net as reset_net
    from revedge.neurons import set_step_mode as set_step_mode
    from revedge.planner.plan import Plan as Plan
    from revedge.units import format_bytes as format_bytes
    from revedge.units import parse_bytes as parse_bytes

    __version__: str

__all__ = [
    "BudgetError",
    "CheckpointError",
    "DataError",
    "DeviceError",
    "ExportError",
    "GridRangeError",
    "IFNode",
    "LIFNode",
    "ParametricLIFNode",
    "Plan",
    "PlanFormatError",
    "RevedgeError",
    "ReversibilityError",
    "ReversibleNode",
    "SpikingNet",
    "UsageError",
    "__version__",
    "create",
    "detach_net",
    "format_bytes",
    "parse_bytes",
    "reset_net",
    "set_step_mode",
]

# Hidden from type checkers, which would otherwise accept every misspelt name.
if not TYPE_CHECKING:
    _HOMES = {
        "SpikingNet": "revedge.models",
        "create": "revedge.models",
        "IFNode": "revedge.neurons",
        "LIFNode": "revedge.neurons",
        "ParametricLIFNode": "revedge.neurons",
        "ReversibleNode": "revedge.neurons",
        "detach_net": "revedge.neurons",
        "reset_net": "revedge.neurons",
        "set_step_mode": "revedge.neurons",
        "Plan": "revedge.planner.plan",
        "format_bytes": "revedge.units",
        "parse_bytes": "revedge.units",
    }

    def __getattr__(name: str) -> object:
        """Import the module of a public name when the name is first used."""
        if name == "__version__":
            from importlib.metadata import PackageNotFoundError, version

            try:
                value: object = version("revedge")
            except PackageNotFoundError:
                value = "0+checkout"  # imported from a checkout, without an installation
        elif name in __all__:
            from importlib import import_module

            value = getattr(import_module(_HOMES.get(name, "revedge.errors")), name)
        else:
            raise AttributeError(f"module 'revedge' has no attribute {name!r}")
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        """Show the public names before they are loaded."""
        return sorted({*globals(), *__all__})
