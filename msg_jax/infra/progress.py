"""Report how much of a piece of work is done, from loops that know nothing of the whole.

Without a listener, reports go nowhere.
"""

from collections.abc import Callable, Iterator
import contextlib
import contextvars

Listener = Callable[[float], None]
_listener: contextvars.ContextVar[Listener] = contextvars.ContextVar("listener", default=lambda share: None)


def report(share: float) -> None:
    """Reports that `share`, from 0 to 1, of the innermost `part` is done."""
    _listener.get()(share)


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Sends the reports of the block to `listener`."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextlib.contextmanager
def part(begin: float, end: float) -> Iterator[None]:
    """Makes the block's work the part from `begin` to `end` of the work around it."""
    outer = _listener.get()
    with listening(lambda share: outer(begin + (end - begin) * min(share, 1.0))):
        yield
