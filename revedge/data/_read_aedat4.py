"""Child process only: the events of an .aedat4 file, to standard output as .npy."""

import sys
from importlib import import_module

import numpy as np

from revedge.data.event_files import EVENT_DTYPE, NO_PACKAGE, events_of


def main() -> int:
    """Decode the file that was named; its stream of events with the lowest number."""
    try:
        aedat = import_module("aedat")
    except ModuleNotFoundError:
        return NO_PACKAGE
    try:
        decoder = aedat.Decoder(sys.argv[1])
        streams = [n for n, one in decoder.id_to_stream().items() if one["type"] == "events"]
        if not streams:
            raise ValueError("no stream of events")
        parts = [packet["events"] for packet in decoder if packet["stream_id"] == min(streams)]
        columns = [
            np.concatenate([part[name] for part in parts]) if parts else np.empty(0, np.int64)
            for name in ("t", "x", "y", "on")
        ]
        events = events_of(columns[0].astype(np.int64), *columns[1:])
    except BaseException as error:  # panics of aedat are no Exception
        print(" ".join(str(error).split())[:200], file=sys.stderr)
        return 1
    assert events.dtype == EVENT_DTYPE
    np.save(sys.stdout.buffer, events)
    return 0


if __name__ == "__main__":
    sys.exit(main())
