"""A clock for feeds whose time is not the present: python -m tests.campaign.clock SECONDS

To these feeds it is so many seconds before now.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from datetime import timedelta

from citystream.installation import Installation
from streams.clock import run


def main() -> None:
    """Let time pass until it is killed."""
    city, delay = Installation.load(), timedelta(seconds=float(sys.argv[1]))
    asking = [replace(feed, delay=delay) for feed in city.feeds.values() if feed.delay is not None]
    run(city.cluster, asking, city.catalogue, time.sleep)


if __name__ == "__main__":
    main()
