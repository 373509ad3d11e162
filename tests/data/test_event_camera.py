"""The simulated event camera."""

import hashlib

import numpy as np

from revedge.data.event_camera import EVENT_DTYPE, EventCamera

SCAN = (np.arange(64).reshape(8, 8) * 7) % 17
# Events of SCAN, recording 3: integers only, so the same on every machine.
PINNED_SHA256 = "9b1e96fbff630e811ffc6699eb7614da73842a7258601565f9c251da51ce6eee"


def test_a_black_scan_gives_background_noise_only() -> None:
    """Without light that changes, only the background events are there, as many as asked for."""
    camera = EventCamera(noise_events=17)
    assert len(camera.record(np.zeros((8, 8), dtype=int), 16, 0)) == 17
    assert len(EventCamera(noise_events=0).record(np.zeros((8, 8), dtype=int), 16, 0)) == 0


def test_on_and_off_events_cancel_in_every_pixel() -> None:
    """The camera ends where it began, so each pixel's last reported level is its first one."""
    camera = EventCamera(noise_events=0)
    events = camera.record(SCAN, 16, 0)
    net = np.zeros((16, 16), dtype=int)
    np.add.at(net, (events["y"], events["x"]), np.where(events["p"], 1, -1))
    assert len(events) > 500
    assert not net.any()


def test_events_are_tonic_events_in_order() -> None:
    """Sorted times within the three saccades, pixels on the sensor, tonic's four fields."""
    events = EventCamera().record(SCAN, 16, 0)
    assert events.dtype == EVENT_DTYPE
    assert events.dtype.names == ("x", "y", "t", "p")
    assert np.all(np.diff(events["t"]) >= 0)
    assert events["t"][0] >= 0
    assert events["t"][-1] <= 315_000
    assert {0, 15} >= {int(events["x"].min()), int(events["x"].max())}
    assert 0 <= events["y"].min() <= events["y"].max() <= 15


def test_path_is_a_closed_triangle_of_small_steps() -> None:
    """Three saccades of sub-pixel steps: down right, up right, back."""
    path = EventCamera().path()
    assert path[[0, 32, 64, 96]].tolist() == [[0, 0], [32, 64], [64, 0], [0, 0]]
    assert np.abs(np.diff(path, axis=0)).max() == 2  # units of 1/32 pixel


def test_the_first_saccade_sees_an_edge_with_the_right_sign() -> None:
    """A white scan that comes down and right: its lower edge brightens pixels, its upper one darkens."""
    camera = EventCamera(noise_events=0)
    events = camera.record(np.full((8, 8), 16), 16, 0)
    first = events[events["t"] < camera.saccade_us]
    middle = (first["x"] >= 6) & (first["x"] <= 9)
    assert first["p"][middle & (first["y"] > 8)].all()
    assert not first["p"][middle & (first["y"] < 7)].any()


def test_noise_is_seeded_by_the_recording() -> None:
    """The same recording twice is the same; another number changes the background only."""
    camera = EventCamera()
    events = camera.record(SCAN, 16, 3)
    assert np.array_equal(events, camera.record(SCAN, 16, 3))
    other = camera.record(SCAN, 16, 4)
    assert len(other) == len(events)
    assert 0 < len(set(events.tolist()) ^ set(other.tolist())) <= 2 * camera.noise_events


def test_events_are_pinned() -> None:
    """The same bytes on every machine and with every numpy."""
    events = EventCamera().record(SCAN, 16, 3)
    assert hashlib.sha256(events.tobytes()).hexdigest() == PINNED_SHA256
