"""What a search has asked for so far: every configuration is predicted once. Free of torch."""

from collections.abc import Callable

from revedge.errors import UsageError
from revedge.planner.cost import Prediction
from revedge.planner.ladder import Rung
from revedge.planner.request import Request
from revedge.planner.setting import Setting
from revedge.planner.way import Way

Predict = Callable[[Setting], Prediction]
Progress = Callable[[int], None]


class Tried:
    """The configurations of ``request`` that were predicted.

    Args:
        request: whose budget decides what fits.
        predict: memory of a setting; raises UsageError for one that cannot exist.
        progress: told the number of configurations tried so far.
    """

    def __init__(self, request: Request, predict: Predict, progress: Progress) -> None:
        self.request, self._predict, self._progress = request, predict, progress
        self._known: dict[str, Prediction] = {}
        self.impossible: list[UsageError] = []

    def __len__(self) -> int:
        """Return how many were predicted."""
        return len(self._known)

    def setting(self, rung: Rung, micro: int, optimizer: str, way: Way) -> Setting:
        """Return the configuration with these values for what is free."""
        return self.request.setting(rung.model, rung.options, rung.timesteps, micro, optimizer, way)

    def prediction(self, setting: Setting) -> Prediction:
        """Return what is predicted of ``setting``.

        Raises:
            UsageError: it cannot exist.
        """
        key = setting.key()
        if key not in self._known:
            self._known[key] = self._predict(setting)
            self._progress(len(self._known))
        return self._known[key]

    def bytes_of(self, setting: Setting) -> int:
        """Return the predicted peak of ``setting``.

        Raises:
            UsageError: it cannot exist.
        """
        return self.prediction(setting).predicted_peak_bytes

    def peak(self, rung: Rung, micro: int, optimizer: str, way: Way) -> int | None:
        """Return the predicted peak, None for a setting that cannot exist."""
        try:
            return self.bytes_of(self.setting(rung, micro, optimizer, way))
        except UsageError as error:
            self.impossible.append(error)
            return None

    def fits(self, rung: Rung, micro: int, optimizer: str, way: Way) -> bool:
        """Return whether it can exist, within the budget."""
        peak = self.peak(rung, micro, optimizer, way)
        return peak is not None and peak <= self.request.budget_bytes

    def sparing(self, micro: int) -> list[Way]:
        """Return the ways that can take the least: an update in backward never takes more than one after it."""
        found = self.request.ways(micro)
        updating = [way for way in found if way.update_in_backward]
        return updating or found
