"""Whether a server of a run answers. Apart from the rest: it is an HTTP client, and takes time to import."""

from __future__ import annotations

import http.client
import socket
import urllib.error
import urllib.request

_PATIENCE_S = 3.0


def healthy(url: str) -> bool | None:
    """Whether a server of this run answers ``url`` with success; None when it takes too long to say.

    ``unix:PATH:/words`` asks the server at a socket of the file system.
    """
    kind, _, rest = url.partition(":")
    path, _, words = rest.partition(":")
    try:
        if kind == "unix":
            return _at_socket(path, words)
        # Loopback and the machines of one job are nothing for a proxy, whatever the environment says.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=_PATIENCE_S):
            return True
    except TimeoutError:
        return None
    except urllib.error.URLError as error:
        return None if isinstance(error.reason, TimeoutError) else False
    except (OSError, http.client.HTTPException):
        # Nobody listens, or it hung up in the middle of its answer.
        return False


def _at_socket(path: str, words: str) -> bool:
    connection = http.client.HTTPConnection("localhost", timeout=_PATIENCE_S)
    with socket.socket(socket.AF_UNIX) as connection.sock:
        connection.sock.settimeout(_PATIENCE_S)
        connection.sock.connect(path)
        connection.request("GET", words)
        return connection.getresponse().status < 400
