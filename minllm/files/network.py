"""Check within two seconds whether the Hugging Face Hub can be reached; its own library tries for half a minute."""

from __future__ import annotations

import http.client
import os
import ssl
import threading
import urllib.error
import urllib.request

PATIENCE = 1.2  # seconds to wait for a response


def can_download() -> bool:
    """Whether the hub can be reached.

    It uses a thread because DNS lookups have no timeout.
    """
    if forbidden_by():
        return False
    if "all" in urllib.request.getproxies():
        return True  # supported by the hub's library, but not by urllib
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(answers_to_a_request()), daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return answers == [True]


def forbidden_by() -> str | None:
    """Return the environment variable that forbids downloads, or None."""
    names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
    return next(
        (name for name in names if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")), None
    )


def endpoint() -> str:
    """Return the URL of the hub."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def answers_to_a_request() -> bool:
    request = urllib.request.Request(endpoint(), method="HEAD", headers={"User-Agent": "minllm"})
    try:
        urllib.request.urlopen(request, timeout=PATIENCE).close()
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as error:
        return isinstance(
            error.reason, ssl.SSLError
        )  # reachable; the hub's library brings its own certificates
    except (OSError, ValueError, http.client.HTTPException):
        return False
    return True
