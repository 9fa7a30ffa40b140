# The laws that hold between what was sent, what a path did to it and what was delivered.
#
# Each is exact: a datagram too few or too many fails it, and the message names the first one that
# nobody can account for.
#
#   L1  path       sent = taken by the relay + dropped by the tun device before it;
#                  emitted = taken - lost - still held + duplicated
#   L2  clean      every datagram sent is delivered, once, in order
#   L3  bad path   different ones delivered + lost + damaged on the way = taken;
#                  delivered = emitted - dropped by the receiver's kernel (InCsumErrors: the
#                  damaged ones; RcvbufErrors). SO_MEMINFO's drops are no help here: a damaged
#                  datagram below 76 bytes is dropped before its socket is looked up.
#   L4  overflow   sent = delivered + dropped: in datagrams with GRO off, with GRO on in buffers
#   L5  cancelled  delivered + left in the kernel + dropped = sent
#
# and the two that bind the package's own statistics to the ledger. This file opens no socket.

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .ledger import Account


class Path(Protocol):
    """What a relay did to the datagrams that went one way through it."""

    @property
    def taken(self) -> int: ...
    @property
    def lost(self) -> int: ...
    @property
    def held(self) -> int: ...
    @property
    def duplicated(self) -> int: ...
    @property
    def damaged(self) -> int: ...
    @property
    def damaged_emitted(self) -> int: ...
    @property
    def emitted(self) -> int: ...


class SenderCounters(Protocol):
    """The sender's statistics, as far as a law speaks of them."""

    @property
    def datagrams_submitted(self) -> int: ...
    @property
    def datagrams_sent(self) -> int: ...
    @property
    def datagrams_failed(self) -> int: ...
    @property
    def datagrams_discarded(self) -> int: ...
    @property
    def datagrams_queued(self) -> int: ...
    @property
    def failures(self) -> Mapping[int, int]: ...


class ReceiverCounters(Protocol):
    """The receiver's statistics, as far as a law speaks of them."""

    @property
    def datagrams_received(self) -> int: ...
    @property
    def datagrams_delivered(self) -> int: ...
    @property
    def datagrams_held(self) -> int: ...


def l1_path(account: Account, path: Path, *, tun_dropped: int = 0) -> None:
    """Nothing vanished between the sender's socket and the far end of the relay."""
    assert account.sent == path.taken + tun_dropped, f"L1: {path}\n{account}"
    assert path.emitted == path.taken - path.lost - path.held + path.duplicated, f"L1: {path}"


def l2_clean(account: Account) -> None:
    """Everything that was sent was delivered, once and in order."""
    assert account.missing == 0, f"L2: {account}"
    assert account.duplicates == 0, f"L2: {account}"
    assert account.late == 0, f"L2: {account}"
    assert account.damaged == 0, f"L2: {account}"


def l3_bad_path(account: Account, path: Path, *, damaged: int, overflowed: int) -> None:
    """What is missing is what the path lost or damaged, and the receiver's kernel dropped.

    Args:
        damaged: InCsumErrors of the receiving namespace.
        overflowed: its RcvbufErrors.
    """
    assert damaged == path.damaged_emitted, f"L3: {damaged} with a bad checksum, but {path}"
    assert account.damaged == 0, f"L3: {account}"
    if overflowed == 0:
        assert account.unique + path.lost + path.damaged == path.taken, f"L3: {path}\n{account}"
    assert account.delivered == path.emitted - damaged - overflowed, f"L3: {path}\n{account}"


def l4_overflow(*, sent: int, delivered: int, dropped: int, unit: str) -> None:
    """What the kernel did not deliver is what it says it dropped, in its own unit."""
    assert sent == delivered + dropped, (
        f"L4: of {sent} {unit} sent {delivered} were delivered and {dropped} dropped; "
        f"{sent - delivered - dropped} are unexplained"
    )


def l5_cancelled(account: Account, *, dropped: int = 0) -> None:
    """No cancellation lost or doubled anything.

    What was left in the kernel's queue has been read from there and entered as delivered.
    """
    assert account.duplicates == 0, f"L5: {account}"
    assert account.damaged == 0, f"L5: {account}"
    assert account.unique + dropped == account.sent, f"L5: {account}"


def sender_adds_up(counters: SenderCounters, account: Account | None = None) -> None:
    """submitted = sent + failed (by errno) + queued + discarded, and the ledger agrees."""
    assert counters.datagrams_submitted == (
        counters.datagrams_sent
        + counters.datagrams_failed
        + counters.datagrams_queued
        + counters.datagrams_discarded
    ), counters
    assert sum(counters.failures.values()) == counters.datagrams_failed, counters
    if account is not None:
        assert counters.datagrams_submitted == account.written, f"{counters}\n{account}"
        assert counters.datagrams_sent == account.sent, f"{counters}\n{account}"
        assert dict(counters.failures) == dict(account.refused), f"{counters}\n{account}"
        assert counters.datagrams_queued == account.queued, f"{counters}\n{account}"


def receiver_adds_up(counters: ReceiverCounters, delivered: int | None = None) -> None:
    """received = delivered + held, and as many were delivered as the program saw."""
    assert counters.datagrams_received == (
        counters.datagrams_delivered + counters.datagrams_held
    ), counters
    if delivered is not None:
        assert counters.datagrams_delivered == delivered, counters
