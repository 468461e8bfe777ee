"""Whether Hugging Face's hub can be reached, found out within two seconds: its own library tries for half a minute."""

from __future__ import annotations

import http.client
import os
import ssl
import threading
import urllib.error
import urllib.request

PATIENCE = 1.2  # seconds for the hub to give any answer


def can_download() -> bool:
    """Whether the hub answers at all.

    The thread is there because a name server that doesn't answer knows no time limit.
    """
    if forbidden_by():
        return False
    if "all" in urllib.request.getproxies():
        return True  # a kind of proxy that the library knows, and urllib doesn't
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(answers_to_a_request()), daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return answers == [True]


def forbidden_by() -> str | None:
    """Return the variable by which the user has forbidden the network, if there is one."""
    names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
    return next(
        (name for name in names if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")), None
    )


def endpoint() -> str:
    """Return where the hub is."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def answers_to_a_request() -> bool:
    request = urllib.request.Request(endpoint(), method="HEAD", headers={"User-Agent": "minllm"})
    try:
        urllib.request.urlopen(request, timeout=PATIENCE).close()
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # it's there; the library has certificates of its own
    except (OSError, ValueError, http.client.HTTPException):
        return False
    return True
