"""How work is cut into programs, and the options that every launch takes.

All sizes depend on the shapes only, never on the GPU, so that the order of a sum does not either.
"""

import math
from typing import Any

import torch
import triton
from torch import Tensor

# Without it a * b + c is one rounding on the GPU and two in the reference.
EXACT = {"enable_fp_fusion": False}
BLOCK = 256  # neurons of a program
TILE = 1024  # elements of a program that works on planes
SCRATCH_BYTES = 16 << 20
_MOST_PIECES = 256
_TILES_OF_A_PIECE = 4


def launch(kernel: Any, programs: int, *args: object, **constants: object) -> None:
    """Run ``programs`` programs of ``kernel``, all of it in the rounding of the reference."""
    if programs:
        kernel[(programs,)](*args, **constants, **EXACT)


def planes(y: Tensor, dims: int) -> tuple[int, int, int]:
    """Return (M, C, S): ``dims`` leading dimensions in one, channels, the rest in one."""
    return math.prod(y.shape[:dims]), y.shape[dims], math.prod(y.shape[dims + 1 :])


def tile(size: int) -> dict[str, int]:
    """Return the ROWS and COLUMNS of a tile of ``TILE`` elements over planes of ``size``."""
    columns = min(TILE, int(triton.next_power_of_2(max(1, size))))
    return {"ROWS": TILE // columns, "COLUMNS": columns}


def tiles(rows: int, size: int) -> int:
    """Return how many tiles cover ``rows`` planes of ``size`` elements."""
    shape = tile(size)
    return -(-rows // shape["ROWS"]) * -(-size // shape["COLUMNS"])


def pieces(tiles_each: int) -> int:
    """Return in how many pieces, a power of two, the sum of each channel is taken.

    It knows nothing of how many channels there are: a slab of some gives the bits of all at once.
    """
    wanted = min(_MOST_PIECES, -(-tiles_each // _TILES_OF_A_PIECE))
    return int(triton.next_power_of_2(max(1, wanted)))


def slabs(like: Tensor, neurons: int, rows: int) -> tuple[Tensor, int]:
    """Return scratch of ``rows`` rows of a block for each of so many programs, and how many.

    Programs take one block of neurons after another, so that scratch stays below ``SCRATCH_BYTES``
    (or one slab, if that is more) and in the GPU's second cache, however large the tensor.
    """
    slab = max(1, rows) * BLOCK
    programs = min(triton.cdiv(neurons, BLOCK), max(1, SCRATCH_BYTES // (4 * slab)))
    return like.new_empty(programs * slab, dtype=torch.float32), programs
