"""A simulated event camera that looks at a small scan while moving in three saccades.

N-MNIST was recorded by moving a real event camera in front of a screen along a triangle of three saccades (Orchard et
al. 2015, "Converting static image datasets to spiking neuromorphic datasets using saccades").
Here the camera is a model: every pixel compares the logarithm of the light it sees with the last level it reported,
and emits an ON (p = 1) or OFF (p = 0) event for each contrast threshold crossed (Lichtsteiner et al. 2008).

All arithmetic is on integers (or on float64 that holds integers below 2**53), and the random numbers are raw PCG64
words, whose stream numpy keeps fixed: the same events on every machine, with any BLAS and any libm.

Shapes: K camera positions, H x W sensor pixels.
"""

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
EVENT_DTYPE = np.dtype([("x", "<i2"), ("y", "<i2"), ("t", "<i8"), ("p", "?")])
"""tonic's event record: x and y in pixels, t in microseconds, p the polarity."""

_UNITS = 32  # one pixel is 32 units: the camera moves in steps of 1/32 pixel
_LEVELS = 1024  # intensities are quantized to 1/1024 of white before the logarithm is looked up
_LOG_ONE = 4096  # fixed point of the logarithm: 1.0 is 4096


@dataclass(frozen=True)
class EventCamera:
    """What shapes the events; every field enters the key of the frame cache.

    Times in microseconds, lengths in units of 1/32 pixel, contrasts in 1/4096 of a natural-log unit.
    """

    sensor_pixels: int = 16
    cell_units: int = 56  # one scan pixel covers 1.75 sensor pixels
    saccade_units: int = 64  # the triangle is 2 pixels wide and high
    steps_per_saccade: int = 32
    saccade_us: int = 105_000  # as N-MNIST: three saccades in 315 ms
    contrast: int = 1024  # threshold of 0.25
    contrast_spread: int = 102  # fixed-pattern mismatch of the threshold, at most +-10 %
    gain: int = 8  # reported level is log(1 + gain * intensity)
    noise_events: int = 24  # background events per recording, anywhere and at any time
    seed: int = 2015

    def describe(self) -> dict[str, int]:
        """Return all parameters, for the cache key."""
        return asdict(self)

    def record(self, scan: npt.NDArray[np.integer], white: int, index: int) -> npt.NDArray[np.void]:
        """Return the events of one recording, sorted by time.

        Args:
            scan: [h, w] integers, 0 (black) to ``white``.
            white: the value of white in ``scan``, for example 16.
            index: number of the recording; seeds its background noise.

        Returns:
            structured array of ``EVENT_DTYPE``; times from 0 to 3 * ``saccade_us``.
        """
        level_KHW = self._log_levels(scan, white)
        threshold_HW = self._thresholds()
        chunks = [*self._crossings(level_KHW, threshold_HW), self._noise(index)]
        events = np.concatenate(chunks)
        order = np.lexsort((events["p"], events["x"], events["y"], events["t"]))
        return events[order]

    def path(self) -> Int64:
        """Return the camera's positions [K, 2] as (x, y) in units: K = 3 * steps_per_saccade + 1."""
        side = self.saccade_units
        corners = np.array([(0, 0), (side // 2, side), (side, 0), (0, 0)], dtype=np.int64)
        steps = self.steps_per_saccade
        ramp = np.arange(steps)[:, None]
        legs = [a + (b - a) * ramp // steps for a, b in itertools.pairwise(corners)]
        return np.concatenate([*legs, corners[-1:]])

    def _log_levels(self, scan: npt.NDArray[np.integer], white: int) -> Int64:
        """Fixed-point log intensity [K, H, W] that the pixels see from each position."""
        path = self.path()
        weight_y, one = self._weights(path[:, 1], scan.shape[0])
        weight_x, _ = self._weights(path[:, 0], scan.shape[1])
        # float64 holds these integers exactly (white * one**2 < 2**53), so the order of sums is free.
        light = weight_y @ scan.astype(np.float64) @ weight_x.transpose(0, 2, 1)
        level = light.astype(np.int64) * _LEVELS // (white * one * one)
        table = np.rint(_LOG_ONE * np.log1p(self.gain * np.arange(_LEVELS + 1) / _LEVELS))
        seen: Int64 = table.astype(np.int64)[level]
        return seen

    def _weights(self, shift_K: Int64, cells: int) -> tuple[npt.NDArray[np.float64], int]:
        """Interpolation weights [K, pixels, cells], integers that sum to the returned ``one`` inside the scan.

        Quadratic B-spline: smooth, so that the light of a pixel changes by small steps as the camera moves.
        """
        # Distances are counted in half units, so that centers are integers.
        cell = 2 * self.cell_units
        center = np.arange(self.sensor_pixels) * 2 * _UNITS + _UNITS
        middle = self.sensor_pixels * _UNITS - self.saccade_units + 2 * shift_K
        grid = (2 * np.arange(cells) - (cells - 1)) * self.cell_units
        far = np.abs(center[None, :, None] - middle[:, None, None] - grid[None, None, :])
        near = 3 * cell * cell - 4 * far * far
        tail = np.maximum(3 * cell // 2 - far, 0)
        return np.where(2 * far <= cell, near, 2 * tail * tail).astype(np.float64), 4 * cell * cell

    def _thresholds(self) -> Int64:
        """Contrast threshold of each pixel [H, W]: mismatch as a real sensor has, the same in every recording."""
        size = self.sensor_pixels
        draw = _integers(self.seed, size * size, 2 * self.contrast_spread + 1)
        return (self.contrast - self.contrast_spread + draw).reshape(size, size)

    def _crossings(self, level_KHW: Int64, threshold_HW: Int64) -> Iterator[npt.NDArray[np.void]]:
        """Events of each camera step: one per threshold crossed, its time interpolated within the step."""
        reported = level_KHW[0].copy()
        times = np.arange(len(level_KHW)) * self.saccade_us // self.steps_per_saccade
        for k in range(1, len(level_KHW)):
            change = level_KHW[k] - reported
            crossed = np.abs(change) // threshold_HW
            sign = np.sign(change)
            for j in range(1, int(crossed.max()) + 1):
                y, x = np.nonzero(crossed >= j)
                # Where in this step the level passed the j-th threshold, as a fraction of the step's own change.
                moved = np.abs(level_KHW[k] - level_KHW[k - 1])[y, x]
                late = np.abs(change)[y, x] - j * threshold_HW[y, x]
                span = int(times[k] - times[k - 1])
                when = times[k] - late * span // moved
                yield _events(x, y, when, sign[y, x] > 0)
            reported += sign * crossed * threshold_HW

    def _noise(self, index: int) -> npt.NDArray[np.void]:
        count, size = self.noise_events, self.sensor_pixels
        pixel = _integers((self.seed, index, 0), count, size * size)
        when = _integers((self.seed, index, 1), count, 3 * self.saccade_us)
        polarity = _integers((self.seed, index, 2), count, 2)
        return _events(pixel % size, pixel // size, when, polarity > 0)


def _integers(seed: int | tuple[int, ...], count: int, below: int) -> Int64:
    """``count`` integers in [0, below); the modulo bias is under 2**-40."""
    raw = np.random.PCG64(np.random.SeedSequence(seed)).random_raw(count)
    return (np.asarray(raw, dtype=np.uint64) % np.uint64(below)).astype(np.int64)


def _events(x: Int64, y: Int64, t: Int64, p: npt.NDArray[np.bool_]) -> npt.NDArray[np.void]:
    events = np.empty(len(x), dtype=EVENT_DTYPE)
    events["x"], events["y"], events["t"], events["p"] = x, y, t, p
    return events
