"""Client address of a request, in the form that limits count."""

from ipaddress import IPv4Address, IPv6Address
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srm.api.client_address import client_address, counted_as

PROXY = "10.0.0.1"


def address(forwarded: str | None = None, proxies: int = 0, connection: str = PROXY) -> str | None:
    environ: dict[str, Any] = {"REMOTE_ADDR": connection}
    if forwarded is not None:
        environ["HTTP_X_FORWARDED_FOR"] = forwarded
    return client_address(environ, proxies)


def test_without_proxies_the_address_of_the_connection_counts() -> None:
    assert address() == PROXY


def test_without_proxies_x_forwarded_for_is_ignored() -> None:
    assert address("192.0.2.1") == PROXY


@pytest.mark.parametrize(
    ("forwarded", "proxies", "expected"),
    [
        ("192.0.2.1", 1, "192.0.2.1"),
        ("192.0.2.66, 192.0.2.1", 1, "192.0.2.1"),
        ("192.0.2.66,192.0.2.1,10.0.0.2", 2, "192.0.2.1"),
        ("192.0.2.1", 3, "192.0.2.1"),
        ("", 1, PROXY),
        ("192.0.2.1,", 1, None),
        ("_hidden", 1, None),
    ],
)
def test_behind_proxies_the_entry_of_the_outermost_proxy_counts(
    forwarded: str, proxies: int, expected: str | None
) -> None:
    assert address(forwarded, proxies) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("192.0.2.1:80", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:DB8:0:1:2:3:4:5", "2001:db8:0:1::/64"),
        ("[2001:db8::1]", "2001:db8::/64"),
        ("[2001:db8::1]:80", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("", None),
        ("unknown", None),
        ("192.0.2", None),
        ("192.0.2.1.1", None),
        ("192.0.2.01", None),
        ("unix:", None),
    ],
)
def test_each_address_counts_in_one_form(text: str, expected: str | None) -> None:
    assert counted_as(text) == expected


@given(st.text(max_size=60))
def test_any_text_is_an_address_or_none(text: str) -> None:
    counted_as(text)


@settings(max_examples=300)
@given(
    st.lists(
        st.ip_addresses() | st.integers(0, 2**64).map(lambda upper: IPv6Address((upper << 64) % 2**128)), min_size=1
    )
)
def test_the_form_is_the_one_that_postgresql_shows(
    connection: psycopg.Connection[Any], addresses: list[IPv4Address | IPv6Address]
) -> None:
    """The address of a setup is compared with addresses that the database returns."""
    ours = [counted_as(str(address)) for address in addresses]

    row = connection.execute("SELECT array_agg(a::inet::text) FROM unnest(%s::text[]) AS a", [ours]).fetchone()

    assert row is not None
    assert [shown.removesuffix("/32") for shown in row[0]] == ours


@pytest.fixture(scope="module")
def connection(server_url: str) -> Any:
    with psycopg.connect(server_url) as connection:
        yield connection
