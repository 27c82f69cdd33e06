"""Client address, in the form that the limits on addresses count."""

from functools import lru_cache
from ipaddress import IPv4Address, IPv6Network, ip_address
from wsgiref.types import WSGIEnvironment

IPV6_PREFIX = 64
"""Bits of an IPv6 address that count.

A household gets at least a /64 (RFC 6177). The rest of the address belongs to one device and changes by the hour
(RFC 8981).
"""


def client_address(environ: WSGIEnvironment, trusted_proxies: int) -> str | None:
    """Return the client's IPv4 address, or the /64 of its IPv6 address; None when it is not known.

    Without proxies it is the address of the connection. Each proxy appends the address that it was asked from to
    X-Forwarded-For, so the entry `trusted_proxies` from the end is the client's. Earlier entries are the client's own
    claim.
    """
    address: str = environ.get("REMOTE_ADDR", "")
    if trusted_proxies and (forwarded := environ.get("HTTP_X_FORWARDED_FOR")):
        hops = forwarded.split(",")
        address = hops[-min(trusted_proxies, len(hops))].strip()
    return counted_as(address)


@lru_cache(maxsize=10_000)
def counted_as(text: str) -> str | None:
    """Return the address in the text, which may have a port, as PostgreSQL shows an `inet`; None when there is none.

    An IPv6 address becomes its /64, an IPv4 address mapped to IPv6 becomes IPv4.
    """
    if text.startswith("["):  # [2001:db8::1]:443
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:  # 192.0.2.1:443
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if not isinstance(address, IPv4Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if isinstance(address, IPv4Address):
        return str(address)
    return str(IPv6Network((int(address), IPV6_PREFIX), strict=False))
