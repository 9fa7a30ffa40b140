# Exception groups that are an implementation detail: a nursery of ours, inside one call.
#
# A caller who made no nursery expects no group for a single error. This file knows nothing of what
# the tasks did.

from __future__ import annotations

from typing import NoReturn

import trio


def leaves_of(error: BaseException) -> list[BaseException]:
    """The exceptions that a group is made of, through all its groups; of any other one itself."""
    leaves: list[BaseException] = []
    errors = [error]
    while errors:
        one = errors.pop()
        if isinstance(one, BaseExceptionGroup):
            errors += one.exceptions
        else:
            leaves.append(one)
    return leaves


def raise_single(group: BaseExceptionGroup[BaseException]) -> NoReturn:
    """Raise the one exception that a group is about, or else the group.

    A task that was cancelled because another one failed says nothing of its own.
    """
    leaves = leaves_of(group)
    errors = [leaf for leaf in leaves if not isinstance(leaf, trio.Cancelled)]
    if len(errors) > 1:
        raise group
    single = errors[0] if errors else leaves[0]
    context = single.__context__
    try:
        raise single
    finally:
        # Raising it here made the group its context, and the error would be shown twice.
        single.__context__ = context
        del single, errors, leaves, group, context
