"""The client's address, as the limits of addresses count it."""

from functools import lru_cache
from ipaddress import IPv4Address, IPv6Network, ip_address
from wsgiref.types import WSGIEnvironment

PREFIX_OF_IPV6 = 64
"""What a household is given at the least (RFC 6177): of one device alone, the rest changes by the hour (RFC 8981)."""


def client_address(environ: WSGIEnvironment, trusted_proxies: int) -> str | None:
    """The IPv4 address, or the /64 of an IPv6 one, of who sent the request; None when it is not known.

    That of the connection; behind that many proxies, each of which appends whom it was asked by, the entry of
    X-Forwarded-For that the outermost of them wrote. What stands before it is the client's own claim.
    """
    address: str = environ.get("REMOTE_ADDR", "")
    if trusted_proxies and (forwarded := environ.get("HTTP_X_FORWARDED_FOR")):
        hops = forwarded.split(",")
        address = hops[-min(trusted_proxies, len(hops))].strip()
    return counted_as(address)


@lru_cache(maxsize=10_000)
def counted_as(text: str) -> str | None:
    """The address in the text, with or without a port, in the form in which it is counted; None when it is none.

    The form is that in which PostgreSQL shows an `inet`.
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
    return str(IPv6Network((int(address), PREFIX_OF_IPV6), strict=False))
