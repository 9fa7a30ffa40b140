# Rendezvous hashing: which target is a client's.

from __future__ import annotations

import random
import subprocess
import sys
from typing import TYPE_CHECKING

from hypothesis import given, strategies as st

from snaptun_trio._rendezvous import choose

if TYPE_CHECKING:
    from snaptun_trio import Address

TARGETS: list[Address] = [("192.0.2.1", 53), ("192.0.2.2", 53), ("2001:db8::1", 53, 0, 0)]
clients = st.builds(
    lambda ip, port: (str(ip), port), st.ip_addresses(v=4), st.integers(1, 65_535)
) | st.builds(lambda ip, port: (str(ip), port, 0, 0), st.ip_addresses(v=6), st.integers(1, 65_535))
several = st.lists(
    st.tuples(st.sampled_from(["192.0.2.1", "192.0.2.2", "::1"]), st.integers(1, 99)),
    min_size=1,
    max_size=8,
    unique=True,
)


def test_it_is_what_it_always_was() -> None:
    """Processes of other versions have the same clients: this may never change."""
    hosts = ["198.51.100.1", "198.51.100.2", "198.51.100.3", "2001:db8::2", "fe80::1"]
    assert [TARGETS.index(choose((host, 9), TARGETS)) for host in hosts] == [2, 2, 0, 1, 0]


def test_it_is_the_same_in_another_process() -> None:
    """However that hashes its strings."""
    program = (
        "from snaptun_trio._rendezvous import choose\n"
        f"print([choose((f'10.0.0.{{n}}', n), {TARGETS!r}) for n in range(50)])"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": str(seed), "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in (1, 2)
    }
    assert told == {f"{[choose((f'10.0.0.{n}', n), TARGETS) for n in range(50)]}\n"}


@given(client=clients, targets=several, seed=st.integers())
def test_the_order_of_the_targets_does_not_matter(
    client: Address, targets: list[Address], seed: int
) -> None:
    shuffled = random.Random(seed).sample(targets, len(targets))
    assert choose(client, targets) == choose(client, shuffled)
    assert choose(client, targets) in targets


@given(client=clients, targets=several, port=st.integers(1, 65_535))
def test_the_clients_port_does_not_matter(
    client: Address, targets: list[Address], port: int
) -> None:
    assert choose(client, targets) == choose((client[0], port), targets)


@given(client=clients, targets=several, gone=st.integers(0, 7))
def test_a_target_that_goes_moves_its_own_clients_only(
    client: Address, targets: list[Address], gone: int
) -> None:
    left = [target for target in targets if target != targets[gone % len(targets)]]
    before = choose(client, targets)
    if before in left:
        assert choose(client, left) == before


@given(ip=st.ip_addresses(v=4), targets=several)
def test_a_mapped_client_is_the_ipv4_client_that_it_is(ip: object, targets: list[Address]) -> None:
    assert choose((f"{ip}", 9), targets) == choose((f"::ffff:{ip}", 9, 0, 0), targets)


def test_every_target_has_about_as_many() -> None:
    counts = dict.fromkeys(TARGETS, 0)
    for number in range(3000):
        counts[choose((f"10.0.{number // 250}.{number % 250}", 9), TARGETS)] += 1
    assert all(850 < count < 1150 for count in counts.values()), counts


def test_two_ports_of_one_host_are_two_targets() -> None:
    targets: list[Address] = [("192.0.2.1", 1), ("192.0.2.1", 2)]
    assert {choose((f"10.0.0.{number}", 9), targets) for number in range(50)} == set(targets)
