"""Devices: boards, the memory meter and guard, and training inside a budget.

Training runs as two processes. The supervisor (`supervisor.py`, no torch, no numpy) shows progress, samples memory
and restarts; the trainer (`trainer.py`) owns the torch process whose memory is promised. This package imports
nothing by itself, so that `revedge devices list` and the supervisor stay small.
"""
