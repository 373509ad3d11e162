"""Spiking networks by name: `create`, `names`, `families`."""

import revedge.need_torch  # noqa: F401
from revedge.models.count import macs
from revedge.models.net import SpikingNet, spiking_units
from revedge.models.registry import create, families, names
from revedge.neurons import StateSpec

__all__ = ["SpikingNet", "StateSpec", "create", "families", "macs", "names", "spiking_units"]
