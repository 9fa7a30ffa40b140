# What the relays of several processes have counted: on its way to another process, and summed.

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import attrs

from ._relay_account import FlowAccount, SessionCounts, told
from ._relay_statistics import RelayFlow, RelayStatistics, RelayTarget

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ._train import Address

_FLOWS = ("to_targets", "to_clients")


def encoded(told: RelayStatistics | OSError) -> bytes:
    """A line of JSON: what was counted, or why nothing more will be."""
    if isinstance(told, OSError):
        return json.dumps({"errno": told.errno, "strerror": told.strerror}).encode() + b"\n"
    return json.dumps(attrs.asdict(told), default=dict).encode() + b"\n"


def decoded(line: bytes) -> RelayStatistics | OSError:
    """What was `encoded`."""
    facts = json.loads(line)
    if "errno" in facts:
        return OSError(facts["errno"], facts["strerror"])
    for way in _FLOWS:
        facts[way] = RelayFlow(**facts[way])
    facts["targets"] = tuple(
        RelayTarget(**{**target, "address": tuple(target["address"])})
        for target in facts["targets"]
    )
    return RelayStatistics(**facts)


def nothing() -> RelayStatistics:
    """What a relay has counted that has not begun."""
    flow = FlowAccount().snapshot()
    return told(SessionCounts(), 0, flow, flow)


def summed(parts: Sequence[RelayStatistics], targets: Iterable[Address]) -> RelayStatistics:
    """The statistics of all of them together, of one at least, with those of these targets.

    And of others as long as they have sessions: what says so may be older than these targets.
    """
    others = [one.address for part in parts for one in part.targets if one.sessions]
    by_address: dict[Address, list[RelayTarget]] = {address: [] for address in (*targets, *others)}
    for part in parts:
        for target in part.targets:
            if target.address in by_address:
                by_address[target.address].append(target)
    of_targets = tuple(_sum(some) for some in by_address.values() if some)
    total: RelayStatistics = _sum([attrs.evolve(part, targets=()) for part in parts])
    return attrs.evolve(total, targets=of_targets)


def after_the_end(last: RelayStatistics) -> RelayStatistics:
    """What a relay has counted whose process ended after it said this: it holds nothing more."""
    flows: dict[str, Any] = {}
    for way in _FLOWS:
        flow: RelayFlow = getattr(last, way)
        dropped = Counter(flow.dropped)
        dropped["closed"] += flow.datagrams_waiting
        flows[way] = attrs.evolve(flow, datagrams_waiting=0, dropped=MappingProxyType(+dropped))
    closed = last.sessions_closed + last.sessions
    targets = tuple(attrs.evolve(target, sessions=0) for target in last.targets)
    return attrs.evolve(last, sessions=0, sessions_closed=closed, targets=targets, **flows)


def _sum(parts: Sequence[Any]) -> Any:  # noqa: ANN401  # what counts are: numbers, and made of them
    first = parts[0]
    if isinstance(first, Mapping):
        counts: Counter[str] = Counter()
        for part in parts:
            counts.update(part)
        return MappingProxyType(dict(counts))
    if isinstance(first, RelayFlow | RelayStatistics | RelayTarget):
        names = [field.name for field in attrs.fields(type(first))]
        return type(first)(**{name: _sum([getattr(one, name) for one in parts]) for name in names})
    return first if isinstance(first, tuple) else sum(parts)  # an address, or no targets
