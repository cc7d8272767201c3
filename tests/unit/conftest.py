"""Hypothesis draws the same examples every time (``ci``); HYPOTHESIS_PROFILE=search draws others."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

SLOW_IS_FINE = [HealthCheck.too_slow]
settings.register_profile("ci", derandomize=True, database=None, deadline=None, suppress_health_check=SLOW_IS_FINE)
settings.register_profile("search", database=None, deadline=None, suppress_health_check=SLOW_IS_FINE)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# Polars prints a trace for every panic, which the decoder catches; Rust reads this once.
os.environ["RUST_BACKTRACE"] = "0"
