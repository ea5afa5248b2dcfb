"""Refuse what leaves this machine, and note it in a file: the test fails, whoever hides the error.

An audit hook sees every way from Python to a resolver or a peer, whatever was imported from where, in every thread.
Names below `.invalid` (RFC 6761) and addresses from 192.0.2.0 on (RFC 5737) are nobody's: nobody is asked for them.
"""

import ipaddress
import os
import socket
import sys
import traceback


def _is_here(host) -> bool:
    if isinstance(host, bytes):
        host = host.decode(errors="replace")
    if host in (None, "", "localhost", "<broadcast>"):
        return host != "<broadcast>"
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _is_number(host) -> bool:
    text = host.decode(errors="replace") if isinstance(host, bytes) else str(host)
    return all(part.isdigit() for part in text.split(".")) or ":" in text


def _watch(event, arguments):
    if not event.startswith("socket."):
        return
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        host = arguments[0]
        here = _is_here(host) or (event != "socket.gethostbyaddr" and _is_number(host))
    elif event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        if arguments[0].family not in (socket.AF_INET, socket.AF_INET6) or not arguments[1]:
            return
        host = arguments[1][0]
        here = _is_here(host)
    else:
        return
    if here:
        return
    if not str(host).endswith(".invalid") and not str(host).startswith("192.0.2."):
        with open(os.environ["LEFT_LOOPBACK"], "a") as file:
            who = f"{os.environ.get('PYTEST_CURRENT_TEST')}, {sys.argv}"
            file.write(f"{event} {host!r} in {who}\n{''.join(traceback.format_stack(limit=12)[:-1])}\n")
    raise socket.gaierror(socket.EAI_NONAME, f"{host!r} is not on this machine; tests stay on loopback")


if "LEFT_LOOPBACK" in os.environ:
    sys.addaudithook(_watch)
