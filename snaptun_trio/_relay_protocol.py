# The sessions of a relay with a protocol: functions of the program's see all that goes through.
#
# They are called from the middle of a batch, and may do anything to any session. So nothing is
# closed while batches are handed out: who is to go waits for their end. What goes to clients is
# collected meanwhile, in its order, and leaves by one call. A function that raises has
# `_relay_functions` know; what came and is given to no function any more stays in the account as
# being handed out, until the relay ends.

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from ._messages import TrainMessages
from ._relay_client import RelayClient
from ._relay_sessions import RelaySessions
from ._rendezvous import choose
from ._upstream import send_each, send_or_drop

if TYPE_CHECKING:
    from ._kernel._fan import Fan
    from ._kernel._outgoing import Outgoing
    from ._messages import Messages
    from ._relay_functions import RelayFunctions
    from ._relay_sessions import RelaySession
    from ._sender import UdpBatchSender
    from ._train import Address, Way

# So many batches for clients are collected at most before they are sent.
_COLLECTED = 256


class ProtocolSessions(RelaySessions):
    """All sessions of one relay, and what functions make of what goes through them.

    A session is ``asked`` when something went on to its target that was not answered yet: what a
    function kept needs no answer.

    Args:
      functions: the program's.
      more: see `RelaySessions`.
    """

    def __init__(
        self,
        functions: RelayFunctions,
        front: UdpBatchSender,
        fan: Fan,
        *arguments: Any,  # noqa: ANN401
        **more: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(front, fan, *arguments, **more)
        self._functions = functions
        self._depth = 0  # how many calls that hand out batches are under way, one inside the other
        self._collected: list[tuple[RelaySession, Messages]] = []
        self._sent_back = 0
        self._to_end: deque[RelaySession] = deque()  # each as often as it was asked for

    @property
    def is_asked(self) -> bool:
        return any(session.asked for session in self._table)

    def _let_in(self, client: Address, first: Messages, now: float) -> RelaySession | None:
        functions = self._functions
        # Asked before anybody goes for it.
        if functions.admit is not None and not self.stopping:
            newcomer = RelayClient(client, choose(client, self._targets), self)
            if not functions.admits(first, newcomer):
                self.counts.shed += 1
                self._to_targets.drop("refused", first.datagrams)
                return None
        return super()._let_in(client, first, now)

    def _open(self, client: Address, first: Messages, now: float) -> RelaySession | None:
        session = super()._open(client, first, now)
        if session is not None:
            session.client = RelayClient(client, session.target, self)
            session.asked = False
        return session

    # -- handing out

    def _send(self, sessions: list[RelaySession], parts: list[Messages]) -> None:
        if not sessions:
            return
        self._depth += 1
        try:
            passing, passed = self._passed(sessions, parts)
            sessions.clear()
            parts.clear()
            send_each(passing, passed, self._fan, self._to_targets)
        finally:
            self._leave()

    def _passed(
        self, sessions: list[RelaySession], parts: list[Messages]
    ) -> tuple[list[RelaySession], list[Messages]]:
        """What goes on to targets of what clients sent, and by which sessions."""
        functions, account = self._functions, self._to_targets
        function = functions.from_client
        passing: list[RelaySession] = []
        passed: list[Messages] = []
        for session, came in zip(sessions, parts):
            goes: Messages | None = came
            if function is not None:
                if functions.failed:
                    break
                goes = functions.call("from_client", function, came, session.client)
                account.handled(came.datagrams, goes.datagrams if goes else 0, session.account)
            if goes is not None:
                # The rows of answers say where they leave from, which is no way to a target.
                passed.append(came if goes is came else TrainMessages.of(goes))
                passing.append(session)
                session.asked = True
        return passing, passed

    def answer(self, ready: list[RelaySession]) -> int:
        self._depth += 1
        try:
            found = super().answer(ready)
            for session in ready:
                session.asked = False
            return found
        finally:
            self._leave()

    def _pass_back(self, messages: Messages) -> None:
        functions, account = self._functions, self._to_clients
        function = functions.from_target
        self._flush()  # it came first
        if function is None:
            super()._pass_back(messages)
            return
        sent_back, unchanged = self._sent_back, True
        for client, came in messages.by_address().items():
            if functions.failed:
                unchanged = False
                break
            session = self._table.get(client) if client is not None else None
            assert session is not None, "it was read a moment ago, and nobody was closed since"
            goes = functions.call("from_target", function, came, session.client)
            account.handled(came.datagrams, goes.datagrams if goes else 0, account)
            unchanged &= goes is came
            if goes is not None:
                self._collected.append((session, goes))
        if unchanged and sent_back == self._sent_back:
            self._collected.clear()
            super()._pass_back(messages)  # the very messages, which know their ways
        else:
            self._flush()

    def _leave(self) -> None:
        """A call that hands out batches is at its end. With the last one go those who are to."""
        try:
            if self._depth == 1:
                while self._to_end:
                    self.counts.closed += self._let_go(self._to_end.popleft())
                self._flush()
        finally:
            self._depth -= 1

    # -- what functions ask for

    def send_back(self, client: RelayClient, messages: Messages) -> None:
        """See `RelayClient.answer`."""
        account = self._to_clients
        account.added += messages.datagrams
        session = self._session_of(client)
        if session is None:
            account.drop("closed", messages.datagrams)
            return
        account.handing_out += messages.datagrams
        self._sent_back += 1
        self._collected.append((session, messages))
        if not self._depth or len(self._collected) >= _COLLECTED:
            self._flush()

    def end(self, client: RelayClient) -> None:
        """See `RelayClient.close`."""
        session = self._session_of(client)
        if session is not None:
            self._to_end.append(session)
            self._depth += 1
            self._leave()

    def _session_of(self, client: RelayClient) -> RelaySession | None:
        session = self._table.get(client.address)
        return session if session is not None and session.client is client else None

    def _flush(self) -> None:
        """Send what was collected for clients. Without memory for it, it is dropped, and raises."""
        if not self._collected:
            return
        collected, self._collected = self._collected, []
        account = self._to_clients
        datagrams = sum([messages.datagrams for _, messages in collected])
        try:
            outgoing = self._gathered(collected)
        except BaseException:
            # Whoever answers may be a task of the program's, after which the relay goes on.
            account.handing_out -= datagrams
            account.drop("ENOMEM", datagrams)
            raise
        send_or_drop(self._front, outgoing, account)
        account.handing_out -= datagrams

    def _gathered(self, collected: list[tuple[RelaySession, Messages]]) -> Outgoing:
        """The same as one batch, each for its client."""
        payloads: list[bytes | memoryview] = []
        sizes: list[int] = []
        addresses: list[Address | None] = []
        names: list[bytes | None] = []
        ways: list[Way | None] = []
        for session, messages in collected:
            made = TrainMessages.of(messages)
            count = made.count
            if count == 1 and made.plain:  # as where each asks and waits
                payloads.append(made.payloads[0])
                sizes.append(made.segment_sizes[0])
                addresses.append(session.address)
                names.append(session.name)
                ways.append(session.way)
                continue
            payloads += made.payloads
            sizes += made.segment_sizes
            addresses += [session.address] * count
            names += [session.name] * count
            if made.plain:
                ways += [session.way] * count
            else:
                _, host, interface = session.way or (None, None, None)
                ways += [(train.ecn, host, interface) for train in made.trains()]
        return self._front._io.gathered(payloads, sizes, addresses, names, ways)
