"""The two ways to end badly: a user's mistake (one line, exit 2) and a bug (a traceback, exit 1)."""

import difflib
import sys
from collections.abc import Callable, Iterable


class UserError(Exception):
    """A mistake of the user's. The message says what, where, and what to do, in one line."""


def nearest(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)`, or the known names where none is near. For the tail of an error line."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else f" (known: {', '.join(known)})"


def exit_status(main: Callable[[], None]) -> int:
    """Run `main`; 0, or 2 with one line on stderr for a UserError, or 130 for an interrupt. Bugs keep their traceback."""
    try:
        main()
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0
