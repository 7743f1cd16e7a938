"""Weights from a model hub: fail fast and clearly where the hub is out of reach."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from urllib.parse import urlparse

from substyle.kernels.errors import SubstyleError

_CONNECT_S = 3.0


class WeightsError(SubstyleError):
    """A backbone's weights cannot be had."""


def require_repository(backbone: str, repository: str) -> None:
    """Return when a hub repository is cached or its hub answers; raise WeightsError within seconds otherwise.

    A client that retries a hub it cannot reach takes most of a minute to say so. When the hub is out of reach but the
    repository is cached, the client is switched to offline mode.
    """
    from huggingface_hub import constants

    cached = (Path(constants.HF_HUB_CACHE) / ("models--" + repository.replace("/", "--")) / "snapshots").is_dir()
    if not constants.HF_HUB_OFFLINE and _answers(constants.ENDPOINT):
        return
    if cached:
        constants.HF_HUB_OFFLINE = True
        return
    raise WeightsError(
        f"{backbone}: its weights ({repository}) are not in the local hub cache ({constants.HF_HUB_CACHE}) and the hub "
        f"cannot be reached. Give a local file (checkpoint = path), or fill the cache on a machine with network."
    )


def _answers(endpoint: str) -> bool:
    url = urlparse(endpoint)
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True  # only the client knows what its proxy reaches
    try:
        port = url.port or (80 if url.scheme == "http" else 443)
        with socket.create_connection((url.hostname or "", port), timeout=_CONNECT_S):
            return True
    except OSError:
        return False
