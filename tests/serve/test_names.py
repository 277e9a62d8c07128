"""Under which names the server answers: addresses, its own names, and those that are given."""

import socket

import pytest

from kd_jax.runtime.errors import UserError
from kd_jax.serve import names
from kd_jax.serve.names import Names

OWN = socket.gethostname()


@pytest.mark.parametrize(("address", "expected"), [
    ("127.0.0.1", True), ("127.0.0.2", True), ("127.255.255.254", True), ("::1", True),
    ("::ffff:127.0.0.3", True), ("0.0.0.0", False), ("::", False), ("192.0.2.7", False),
    ("::ffff:192.0.2.7", False), ("fe80::1%eth0", False), ("127.evil.example", False), ("", False),
])  # fmt: skip
def test_what_only_this_machine_can_reach(address, expected):
    assert names.is_loopback(address) == expected
    assert Names(address).is_local == expected


@pytest.mark.parametrize(("address", "host", "expected"), [
    ("127.0.0.1", "127.0.0.1:8000", True), ("127.0.0.2", "127.0.0.2:8000", True),
    ("127.0.0.1", "LOCALHOST.", True), ("127.0.0.1", "[::1]:80", True),
    ("127.0.0.1", "proxy.example:443", True), ("127.0.0.1", "192.0.2.7", False),
    ("127.0.0.1", "evil.example", False), ("127.0.0.1", "", False),
    ("0.0.0.0", "192.0.2.7:8000", True), ("0.0.0.0", "[2001:db8::1]:8000", True),
    ("0.0.0.0", OWN, True), ("0.0.0.0", f"{OWN.upper()}:80", True), ("0.0.0.0", "localhost", True),
    ("0.0.0.0", "proxy.example", True), ("0.0.0.0", "evil.example", False),
    ("0.0.0.0", "evil.proxy.example", False), ("192.0.2.7", "192.0.2.7.evil.example", False),
    ("192.0.2.7", "", False),
])  # fmt: skip
def test_a_name_that_others_can_lead_here_is_none_of_ours(address, host, expected):
    assert (host in Names(address, ["Proxy.example"])) == expected


def test_names_are_given_with_commas():
    assert names.given("a.example, B-c.example") == ("a.example", "B-c.example")
    assert names.given(None) == names.given("") == ()


@pytest.mark.parametrize("text", ["http://a", "a:80", "a,,b", "a b", "*", "a/", "-a", "a" * 300])
def test_what_is_no_name_is_refused(text):
    with pytest.raises(UserError, match=r"--names=.* is not the name of a host: expected"):
        names.given(text)
