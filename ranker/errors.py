"""The two ways in which a script fails: a user's mistake (one line, exit 2) and a bug (a traceback, exit 1)."""

import argparse
import difflib
import errno
import os
import sys
from collections.abc import Callable, Iterable

LONGEST = 300  # characters that an error line may have


class UserError(Exception):
    """A mistake of the user. The message says in one line what is wrong, where, and what to do."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of an error line: ` (did you mean 'x'?)`, or the known names where none is near."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else f" (known: {', '.join(known)})"


class Parser(argparse.ArgumentParser):
    """An argument parser that raises UserError for wrong arguments."""

    def __init__(self, more: Callable[[], str] | None = None, **kwargs):
        """`more`: a text that stands below the help, made only for it."""
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)
        self.more = more

    def format_help(self) -> str:
        return super().format_help() + (f"\n{self.more()}" if self.more else "")

    def error(self, message):
        raise UserError(f"{message}; see {self.prog} --help")


def one_line(text: str) -> str:
    """Return `text` as an error line shows it: on one line, printable, and with its middle left out where it is long.

    A text from a file may be as long as the file, and may contain codes that a terminal obeys.
    """
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))
    room = LONGEST - len("error:  ... ")
    # The start says what is wrong and where, the end what to do.
    return text if len(text) <= room + 5 else f"{text[:room - room // 3]} ... {text[-(room // 3):]}"


def exit_status(main: Callable[[], int | None]) -> int:
    """Run `main` and return its exit status, or 2 with one line on stderr for a UserError.

    A full disk or a closed pipe behind the standard output, and a full GPU, end with 2 and one line too; Ctrl-C ends
    with 130. Bugs keep their traceback.
    """
    try:
        status = main() or 0
        sys.stdout.flush()
        return status
    except UserError as error:
        error.__traceback__ = error.__context__ = None  # so that progress bars are freed and end their line
        return _ended(f"error: {one_line(str(error))}")
    except OSError as error:
        if error.filename or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EPIPE):
            raise
        # Without a file name it was a standard stream: everything else that writes names its file.
        return _ended(f"error: cannot write to the standard output or error: {error.strerror}; "
                      "what was saved before is whole")
    except Exception as error:
        if type(error).__name__ != "OutOfMemoryError":  # by name, so that this file need not import torch
            raise
        return _ended("error: the GPU is out of memory; lower, in this order: rollout.tokens_per_batch and "
                      "rollout.tokens_per_prefill, train.tokens_per_batch, rollout.max_new_tokens; "
                      "or set model.gradient_checkpointing=true")
    except KeyboardInterrupt:
        return _ended("interrupted", 130)


def _ended(line: str, status: int = 2) -> int:
    """Print the last line on stderr and return the exit status."""
    for stream, text in ((sys.stdout, ""), (sys.stderr, line + "\n")):
        try:
            print(text, end="", file=stream, flush=True)
        except OSError:  # a log on a full disk; without dup2 Python would try again at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return status
