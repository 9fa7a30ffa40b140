"""Keys and sealing for tunnel.py: sessions, the replay window, how two sides agree on new keys.

An example. Nobody has audited it; for packets that matter take WireGuard.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from collections import Counter

import attrs
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

HELLO, REPLY, DATA = 1, 2, 3  # the first byte of every message
HEADER = struct.Struct("!B3sIQ")  # DATA, notes on the packet, the receiver's index, the counter
HELLO_BODY = struct.Struct("!B3xI32s")  # HELLO, the sender's index, its random bytes
REPLY_BODY = struct.Struct("!B3xII32s")  # REPLY, whose HELLO, the sender's index, its random bytes
MAC = 16  # bytes at the end of HELLO and REPLY
OVERHEAD = HEADER.size + 16  # what sealing adds to a packet
NO_NOTES = bytes(3)
WINDOW = 8192  # how late a message may be, in messages; a power of two
OVERLAP = 10.0  # seconds for which an old session still opens what is under way
SESSIONS = 16  # at most, as a HELLO can be sent again by anybody


class ReplayWindow:
    """Which counters have come, of the last `WINDOW`: RFC 6479 with a byte for each, not a bit."""

    def __init__(self) -> None:
        self._seen = bytearray(WINDOW)
        self._highest = -1

    def is_fresh(self, counter: int) -> bool:
        if counter > self._highest:
            return True
        return counter > self._highest - WINDOW and not self._seen[counter % WINDOW]

    def mark(self, counter: int) -> None:
        """Only after the message proved genuine: a forger must not be able to move the window."""
        ahead = counter - self._highest
        if ahead > WINDOW:
            self._seen = bytearray(WINDOW)
        elif ahead > 1:  # those that were skipped may still come
            for skipped in range(self._highest + 1, counter):
                self._seen[skipped % WINDOW] = 0
        if ahead > 0:
            self._highest = counter
        self._seen[counter % WINDOW] = 1


@attrs.define(eq=False)
class Session:
    """One pair of keys, and which messages went under them."""

    index: int  # by which the peer names it to us
    peer_index: int  # by which we name it to the peer
    is_ours: bool  # we asked for it, so we replace it
    born: float
    forget_at: float
    _sealing: ChaCha20Poly1305
    _opening: ChaCha20Poly1305
    sealed: int = 0
    heard: bool = False  # whether the peer has shown that it has the keys
    _window: ReplayWindow = attrs.field(factory=ReplayWindow)

    def seal(self, packet: bytes | bytearray, notes: bytes = NO_NOTES) -> bytes:
        """A message for the peer. The notes, three bytes, are authenticated but not hidden."""
        header = HEADER.pack(DATA, notes, self.peer_index, self.sealed)
        self.sealed += 1  # before anything can fail: no counter is ever used twice
        return header + self._sealing.encrypt(b"\0\0\0\0" + header[8:], packet, header)

    def open(self, message: bytes) -> bytes:
        """Raises `ValueError` for what came before, `InvalidTag` for what the peer never sealed."""
        header = message[:16]
        counter = int.from_bytes(header[8:], "big")
        if not self._window.is_fresh(counter):
            raise ValueError("replayed")
        packet = self._opening.decrypt(b"\0\0\0\0" + header[8:], message[16:], header)
        self._window.mark(counter)
        return packet


class Keyring:
    """The sessions with one peer. Plain functions: who sends the messages is not its matter.

    Whoever wants new keys sends HELLO, the other answers with REPLY, both authenticated by the
    pre-shared key. The one that asked uses the new session at once, since the other has it. The
    other uses it when the first message under it has come: a HELLO that somebody recorded and sent
    again makes a session that is never used.
    """

    def __init__(self, psk: bytes, *, seconds: float, messages: int) -> None:
        self._psk = psk
        self._mac_key = self._derive(b"", b"handshake", 32)
        self._seconds, self._messages = seconds, messages
        self._sessions: dict[int, Session] = {}
        self._asked: tuple[int, bytes] | None = None
        self._lost_touch = False
        self.sending: Session | None = None
        self.counts: Counter[str] = Counter()

    def _derive(self, salt: bytes, info: bytes, length: int) -> bytes:
        purpose = b"snaptun_trio tunnel example, " + info
        return HKDF(SHA256(), length, salt, purpose).derive(self._psk)

    def _mac(self, *parts: bytes) -> bytes:
        return hmac.digest(self._mac_key, b"".join(parts), hashlib.sha256)[:MAC]

    def _free_index(self) -> int:
        while (index := int.from_bytes(os.urandom(4), "big")) in self._sessions:
            pass
        return index

    def _begin(
        self, index: int, peer_index: int, salt: bytes, now: float, *, is_ours: bool
    ) -> Session:
        keys = self._derive(salt, b"session", 64)
        there, back = ChaCha20Poly1305(keys[:32]), ChaCha20Poly1305(keys[32:])
        ciphers = (there, back) if is_ours else (back, there)
        # One that was offered has to be used soon; every session ends when no new one follows.
        end = now + (3 * self._seconds if is_ours else OVERLAP)
        session = Session(index, peer_index, is_ours, now, end, *ciphers)
        while len(self._sessions) >= SESSIONS:
            others = [each for each in self._sessions.values() if each is not self.sending]
            del self._sessions[min(others, key=lambda other: (other.heard, other.born)).index]
        self._sessions[index] = session
        return session

    def _use(self, session: Session, now: float) -> None:
        for other in self._sessions.values():
            if other.heard:
                other.forget_at = min(other.forget_at, now + OVERLAP)
        session.forget_at = session.born + 3 * self._seconds
        self.sending = session
        self._lost_touch = False
        self.counts["sessions"] += 1

    def wants_new(self, now: float) -> bool:
        """Forget what is over, and tell whether it is time for a HELLO."""
        self._sessions = {key: s for key, s in self._sessions.items() if s.forget_at > now}
        session = self.sending
        if session is None or session.index not in self._sessions:
            self.sending = None
            return True
        if session.is_ours and not session.heard:  # or the peer has not got what we send
            return True
        patience = self._seconds if session.is_ours else 2 * self._seconds
        return (
            self._lost_touch
            or now - session.born >= patience
            or session.sealed >= (self._messages if session.is_ours else 2 * self._messages)
        )

    def hello(self) -> bytes:
        """Ask for a new session. What was asked before is answered in vain."""
        index, random = self._free_index(), os.urandom(32)
        self._asked = index, random
        body = HELLO_BODY.pack(HELLO, index, random)
        return body + self._mac(body)

    def take_hello(self, message: bytes, now: float) -> bytes | None:
        """The REPLY to a HELLO, if it is one of somebody who has the key."""
        body, mac = message[:-MAC], message[-MAC:]
        if len(body) != HELLO_BODY.size or not hmac.compare_digest(mac, self._mac(body)):
            self.counts["forged"] += 1
            return None
        _, peer_index, random = HELLO_BODY.unpack(body)
        if self._asked == (peer_index, random):  # our own: we would agree on keys with ourselves
            self.counts["reflected"] += 1
            return None
        index, own = self._free_index(), os.urandom(32)
        self._begin(index, peer_index, random + own, now, is_ours=False)
        answer = REPLY_BODY.pack(REPLY, peer_index, index, own)
        return answer + self._mac(answer, random)

    def take_reply(self, message: bytes, now: float) -> bytes | None:
        """Use the new session. Returns a message that shows the peer that we do."""
        body, mac = message[:-MAC], message[-MAC:]
        if self._asked is None or len(body) != REPLY_BODY.size:
            self.counts["forged"] += 1
            return None
        index, random = self._asked
        _, to, peer_index, other = REPLY_BODY.unpack(body)
        if to != index or not hmac.compare_digest(mac, self._mac(body, random)):
            self.counts["forged"] += 1  # or late: the answer to a HELLO before the last one
            return None
        self._asked = None
        session = self._begin(index, peer_index, random + other, now, is_ours=True)
        self._use(session, now)
        return session.seal(b"")

    def open(self, message: bytes, now: float) -> tuple[bytes | None, bytes | None]:
        """The packet in a message, and an answer to send; `None` where there is none."""
        session = self._sessions.get(int.from_bytes(message[4:8], "big"))
        if session is None or len(message) < OVERHEAD:
            self.counts["unknown"] += 1
            self._lost_touch = True  # the peer may have keys that we have lost
            return None, None
        try:
            packet = session.open(message)
        except InvalidTag:
            self.counts["forged"] += 1
            return None, None
        except ValueError:
            self.counts["replayed"] += 1
            return None, None
        if session.heard:
            return packet, None
        session.heard = True
        if self.sending is None or (session.born > self.sending.born and not session.is_ours):
            self._use(session, now)
            return packet, session.seal(b"")  # shows the peer that its keys work
        return packet, None
