"""A train/test split that is the same everywhere and has the same share of every class."""

import numpy as np
import numpy.typing as npt

SPLIT_SEED = 0
TEST_PERCENT = 20


def stratified_split(
    labels: npt.ArrayLike, test_percent: int = TEST_PERCENT, seed: int = SPLIT_SEED
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return (train, test) indices, each in increasing order.

    Of a class with n samples, ``(n * test_percent + 50) // 100`` go to the test part (rounded to
    nearest, half up): those with the smallest raw PCG64 words, whose stream numpy never changes.

    Args:
        labels: [N] integers.
        test_percent: 1 to 99.
        seed: non-negative integer.
    """
    labels_N = np.asarray(labels)
    words = np.random.PCG64(np.random.SeedSequence(seed)).random_raw(len(labels_N))
    rank = np.asarray(words, dtype=np.uint64)
    is_test = np.zeros(len(labels_N), dtype=bool)
    for label in np.unique(labels_N):
        members = np.flatnonzero(labels_N == label)
        drawn = members[np.argsort(rank[members], kind="stable")]
        is_test[drawn[: (len(members) * test_percent + 50) // 100]] = True
    return np.flatnonzero(~is_test), np.flatnonzero(is_test)
