"""When a request that failed is sent again; free of I/O, of clocks and of chance.

The delay doubles with every try and is scattered, so that requests that failed together do not come back
together. What the provider asks for by Retry-After is the least; a provider that asks for more than we can
let a person wait is not asked again at all, and the error says how long it wants.
"""

from __future__ import annotations

BACKOFF_S = 0.5  # before the first further try; doubles, up to BACKOFF_CAP_S
BACKOFF_CAP_S = 8.0
RETRY_AFTER_CAP_S = 30.0  # whoever waits at a screen does not wait longer for a beginning
SCATTER = 0.1  # on top of what the provider asks for, as a part of it


def delay_s(tried: int, after_s: float | None, luck: float, first_s: float = BACKOFF_S) -> float | None:
    """Seconds until the next try, or None: there is none.

    Args:
        tried: tries so far, from 1.
        after_s: what the provider asked for; None: it did not say.
        luck: from 0.0 up to 1.0, evenly spread.
        first_s: the largest delay before the second try.
    """
    # Bounded before the power is taken: it grows past any float.
    most = min(first_s * 2.0 ** min(tried - 1, 32), BACKOFF_CAP_S)
    scattered = most * (0.5 + 0.5 * luck)
    if after_s is None:
        return scattered
    if after_s > RETRY_AFTER_CAP_S:
        return None
    return max(scattered, after_s * (1.0 + SCATTER * luck))
