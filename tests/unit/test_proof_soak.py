"""What the soak takes for growth."""

from __future__ import annotations

import pytest

from tests.proof.soak import Samples, grown


@pytest.mark.parametrize(
    ("rss_mb", "files", "settled", "faults"),
    [
        ([100], [5], 0, []),
        ([100] * 40, [5] * 40, 0, []),
        ([50] * 10 + [300] * 30, [3] * 10 + [24] * 30, 0, []),
        # The first round is after the second quarter.
        ([50] * 22 + [300] * 18, [3] * 22 + [24] * 18, 22, []),
        ([50] * 22 + [300] * 18, [3] * 22 + [24] * 18, 0, ["250 MB", "21 open files more"]),
        # It is in the last quarter, which does not excuse what comes with it.
        ([50] * 33 + [300] * 7, [3] * 33 + [24] * 7, 33, ["250 MB", "21 open files more"]),
        # Growth does not end with the first round.
        (list(range(100, 500, 10)), list(range(40)), 10, ["200 MB", "20 open files more"]),
    ],
)
def test_growth_is_what_comes_after_the_first_round(
    rss_mb: list[int], files: list[int], settled: int, faults: list[str]
) -> None:
    samples = Samples(rss=[one * 10**6 for one in rss_mb], files=files, settled=settled)
    found = grown({"trainer": samples})
    assert [one.removeprefix("trainer grew by ").removeprefix("trainer has ") for one in found] == (
        faults
    )
