"""Refuses every attempt to reach another machine, and writes down which host it was for.

Python imports a module of this name at start-up. `make execute` and `make test` put this folder on
PYTHONPATH, so that each chapter runs without network and the table of results can say what it would
have downloaded. The log's name is in DENSENET_TUTORIAL_NETWORK_LOG; without it, attempts are
refused all the same.
"""

import ipaddress
import os
import platform
import sys

# Programs that start several processes look up their own machine's name.
_NAMES = {"", "localhost", platform.node()}


def _is_this_machine(host):
    if host is None:
        return True
    text = host.decode() if isinstance(host, bytes) else str(host)
    if text in _NAMES:
        return True
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _refuse(event, arguments):
    if event == "socket.getaddrinfo" or event in ("socket.gethostbyname", "socket.gethostbyaddr"):
        host = arguments[0]
    elif event in ("socket.connect", "socket.sendto"):
        address = arguments[1]
        # A string is the path of a Unix socket; None is a datagram socket that is connected
        # already.
        if not isinstance(address, tuple):
            return
        host = address[0]
    else:
        return
    if _is_this_machine(host):
        return
    host = host.decode() if isinstance(host, bytes) else str(host)
    log = os.environ.get("DENSENET_TUTORIAL_NETWORK_LOG")
    if log:
        with open(log, "a", encoding="utf-8") as file:
            file.write(host + "\n")
    raise ConnectionRefusedError(f"The book runs without network, so {host} was not contacted")


sys.addaudithook(_refuse)
