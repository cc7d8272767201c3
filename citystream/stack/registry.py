"""The schema registry as a background service of the local stack."""

from __future__ import annotations

import http.client
import sys

from citystream.settings import LOCALHOST, Settings
from citystream.stack.process import Launch

NAME = "registry"


def launch(settings: Settings) -> Launch:
    """How the registry would be started now."""
    return Launch((sys.executable, "-P", "-m", "citystream.cli", NAME, "--port", str(settings.registry_port)))


def ready(settings: Settings) -> bool:
    """Whether it answers."""
    connection = http.client.HTTPConnection(LOCALHOST, settings.registry_port, timeout=2)
    try:
        connection.request("GET", "/subjects")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
