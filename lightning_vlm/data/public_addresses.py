"""Which network addresses belong to the public internet."""

import ipaddress
from typing import TypeAlias

_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_AROUND_IPV4 = tuple(map(ipaddress.IPv6Network, ("::/96", "::ffff:0:0/96", "64:ff9b::/96")))
"""Networks of IPv6 whose last 32 bits are an address of IPv4: compatible, mapped, and translated (NAT64)."""


def is_public(address: str) -> bool:
    """Whether an address is one of the public internet, and not of this machine or of a private network.

    Args:
        address: Of IPv4 or IPv6. An address of IPv6 that stands for one of IPv4 is judged as that one.

    >>> is_public("93.184.215.14"), is_public("10.0.0.1"), is_public("::ffff:127.0.0.1")
    (True, False, False)
    """
    return all(one.is_global and not one.is_multicast for one in _meant(address))


def is_link_local(address: str) -> bool:
    """Whether an address is of the local link, at which clouds hand out credentials.

    >>> is_link_local("169.254.169.254"), is_link_local("64:ff9b::a9fe:a9fe"), is_link_local("10.0.0.1")
    (True, True, False)
    """
    return any(one.is_link_local or one == _METADATA for one in _meant(address))


_METADATA = ipaddress.ip_address("fd00:ec2::254")
"""Where a cloud hands out credentials over IPv6, which isn't of the local link."""


def _meant(address: str) -> list[_Address]:
    """The address, or that of IPv4 which it stands for."""
    given = ipaddress.ip_address(address.partition("%")[0])  # behind it is the name of an interface
    if isinstance(given, ipaddress.IPv4Address):
        return [given]
    if given in (ipaddress.IPv6Address(0), ipaddress.IPv6Address(1)):  # any address, and this machine
        return [given]
    if any(given in network for network in _AROUND_IPV4):
        return [ipaddress.IPv4Address(int(given) & 0xFFFFFFFF)]
    if given.sixtofour is not None:
        return [given.sixtofour]
    if given.teredo is not None:
        return [given, *given.teredo]
    return [given]
