"""How hard Hypothesis tries: ``ci`` is the same every time; HYPOTHESIS_PROFILE=search looks for new examples."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "ci", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "search", deadline=None, database=None, max_examples=2000, suppress_health_check=[HealthCheck.too_slow]
)
# Polars prints a trace for every panic that the decoder catches; Rust reads this once.
os.environ["RUST_BACKTRACE"] = "0"
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
