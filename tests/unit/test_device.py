from __future__ import annotations

import time

import pytest

from embedcache.device import gflop_per_second


@pytest.mark.parametrize("stands_still_for", [0, 3, 1000])
def test_rate_is_measured_in_a_moment_even_where_the_clock_stands_still(
    monkeypatch: pytest.MonkeyPatch, stands_still_for: int
) -> None:
    real, asked = time.process_time, 0

    def clock() -> float:
        nonlocal asked
        asked += 1
        return 0.0 if asked <= stands_still_for else 1.0 + real()

    monkeypatch.setattr("embedcache.device.time.perf_counter", clock)
    assert 0 < gflop_per_second("cpu", "fp32") < float("inf")
    assert asked <= 14
