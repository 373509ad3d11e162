"""Spiking networks by name: `create`, `names`, `families`."""

from revedge.models.net import SpikingNet, StateSpec, spiking_units
from revedge.models.registry import create, families, names

__all__ = ["SpikingNet", "StateSpec", "create", "families", "names", "spiking_units"]
