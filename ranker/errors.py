"""The two ways to end badly: a user's mistake (one line, exit 2) and a bug (a traceback, exit 1)."""

import argparse
import difflib
import errno
import os
import sys
from collections.abc import Callable, Iterable

LONGEST = 300  # characters of an error line


class UserError(Exception):
    """A mistake of the user's. The message says what, where, and what to do, in one line."""


def nearest(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)`, or the known names where none is near. For the tail of an error line."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else f" (known: {', '.join(known)})"


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaint is a UserError, one line."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def error(self, message):
        raise UserError(f"{message}; see {self.prog} --help")


def one_line(text: str) -> str:
    """`text` as an error line shows it: what a file says may be as long as the file, and may hold codes that a terminal
    obeys."""
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))
    room = LONGEST - len("error:  ... ")
    # what, where, and what to do
    return text if len(text) <= room + 5 else f"{text[:room - room // 3]} ... {text[-(room // 3):]}"


def exit_status(main: Callable[[], int | None]) -> int:
    """Run `main`; what it returns, or 2 with one line on stderr for a UserError. Bugs keep their traceback."""
    try:
        status = main() or 0
        sys.stdout.flush()
        return status
    except UserError as error:
        error.__traceback__ = error.__context__ = None  # lets go of progress bars, which end their line then
        return _ended(f"error: {one_line(str(error))}")
    except OSError as error:
        if error.filename or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EPIPE):
            raise
        # What else writes says which file it was.
        return _ended(f"error: cannot write to the standard output or error: {error.strerror}; "
                      "what was saved before is whole")
    except Exception as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's; this file does without torch
            raise
        return _ended("error: the GPU is out of memory; lower, in this order: "
                      "rollout.tokens_per_batch and rollout.tokens_per_prefill,"
                      " train.tokens_per_batch, rollout.max_new_tokens; or set model.gradient_checkpointing=true")
    except KeyboardInterrupt:
        return _ended("interrupted", 130)


def _ended(line: str, status: int = 2) -> int:
    for stream, text in ((sys.stdout, ""), (sys.stderr, line + "\n")):
        try:
            print(text, end="", file=stream, flush=True)
        except OSError:  # a log on a full disk; Python would try once more at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return status
