"""How every command begins and ends: signals that cannot get lost, text that any terminal takes, `~`, and one line and
an exit status in place of a traceback.

It imports nothing slow: a command opens `ends` first, and imports the rest inside, where Ctrl-C is heard.
"""

import atexit
import codecs
import contextlib
import errno
import io
import logging
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

from infomask_jax.text import shown

STOPPED = 75  # exit status of a run that was asked to stop and saved: EX_TEMPFAIL, the same command continues it
UNREAD = 128 + signal.SIGPIPE  # of a command that only tells something, to a reader who has gone
INSIST = 0.2  # seconds after which an interrupt that got lost is raised again
ASCII = dict.fromkeys(range(0x2500, 0x2580), "+") | str.maketrans("–━─│┃…", "---||.") | {ord("±"): "+-", ord("≥"): ">="}


class Stopped(KeyboardInterrupt):
    """A run was asked to stop, and what it had is saved; the same command continues it."""


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM. (A plain KeyboardInterrupt that goes through exec() changes Python's own exit status.)"""


@contextlib.contextmanager
def ends(resumes: bool = False) -> Iterator[None]:
    """Gives a command its end: 0 done; 1 an error, told, or interrupted by SIGINT or SIGTERM; 75, of one that `resumes`
    from what is saved, told to stop by SIGTERM."""
    if sys.getfilesystemencoding() != "utf-8":  # an old locale: only a new Python finds files by all their names
        os.environ.setdefault("PYTHONIOENCODING", sys.stdout.encoding if sys.stdout else "ascii")
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns where a home cannot be written, and goes on
    with _outputs(), _Signals(resumes) as signals:
        try:
            yield
        except BaseException as error:
            if signals.asked and not isinstance(error, (SystemExit, KeyboardInterrupt)):
                error = signals.asked  # someone has made an error of their own of it
            if isinstance(error, Stopped) and resumes:
                print(error, file=sys.stderr)
                raise SystemExit(STOPPED) from None
            if isinstance(error, KeyboardInterrupt):
                raise SystemExit("interrupted; nothing half-written is left") from None
            if isinstance(error, MemoryError):
                raise SystemExit(f"error: out of memory{'; ' * bool(error.args)}{error}") from error
            if isinstance(error, (ValueError, OSError, FloatingPointError)):
                raise SystemExit("error: " + "\n".join(map(shown, str(error).split("\n")))) from error
            raise


class _Signals:
    """Turns SIGINT and SIGTERM into Interrupted or, where a command resumes, SIGTERM into Stopped.

    Python drops what is raised in a callback of its garbage collector, where JAX has one, or in a destructor; so it is
    raised again until it is on its way up. While it is, no other signal disturbs the clean-up.
    """

    def __init__(self, resumes: bool):
        self.resumes, self.asked = resumes, None

    def __enter__(self):
        # Also where SIGINT is ignored, as in the background of a script: a run hears it there, too.
        numbers = signal.SIGINT, signal.SIGTERM, signal.SIGALRM
        self.before = {number: signal.signal(number, self._hear) for number in numbers}
        self.hook, sys.unraisablehook = sys.unraisablehook, self._dropped
        return self

    def _hear(self, number, frame):
        if self.asked is None:
            stopped = Stopped("stopped; what is saved is kept. The same command continues from there.")
            self.asked = stopped if self.resumes and number == signal.SIGTERM else Interrupted()
        signal.setitimer(signal.ITIMER_REAL, INSIST)
        while frame is not None:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                return  # some libraries crash where their import is interrupted: again, at its end
            frame = frame.f_back
        error = sys.exception()
        while error is not None:
            if isinstance(error, KeyboardInterrupt):
                return  # someone is cleaning up because of it
            error = error.__context__
        raise type(self.asked)(*self.asked.args)

    def _dropped(self, unraisable):
        if self.asked is None:  # else it is the signal, or a thread whose event loop has gone before it
            self.hook(unraisable)

    def __exit__(self, *_):
        signal.setitimer(signal.ITIMER_REAL, 0)
        if self.asked is None:
            sys.unraisablehook = self.hook
        for number, handler in self.before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: a handler that was not set by Python
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)  # all is done: what ends Python is not disturbed


@contextlib.contextmanager
def deaf() -> Iterator[None]:
    """Processes that are started in this block never hear SIGINT, which a terminal sends to all of a command's."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Output(io.FileIO):
    """stdout or stderr, which cannot end the work: once it cannot be written, what is written goes nowhere."""

    error: OSError | None = None

    def write(self, data):
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return len(data)


@contextlib.contextmanager
def _outputs() -> Iterator[None]:
    """stdout and stderr that take any text and outlive their reader, such as `head`. SystemExit at the end where a full
    disk or the like has lost what was told."""
    while (spare := os.open(os.devnull, os.O_RDWR)) <= 2:  # one that is closed must not become a file of ours
        pass
    os.close(spare)
    codecs.register_error("infomask", _plainly)
    before = sys.stdout, sys.stderr
    with contextlib.ExitStack() as stack:
        for number, name in ((1, "stdout"), (2, "stderr")):
            stream = getattr(sys, name)
            if stream is not getattr(sys, f"__{name}__"):  # someone else's
                continue
            encoding = stream.encoding if stream else "utf-8"  # None: it is closed
            at_once = stream is not None and (stream.line_buffering or stream.write_through)
            buffer = io.BufferedWriter(_Output(number, "w", closefd=False))
            ours = io.TextIOWrapper(buffer, encoding, "infomask", line_buffering=at_once)
            setattr(sys, name, ours)
            stack.callback(ours.flush)
        try:
            yield
        finally:
            stack.close()
            told = _lost(sys.stdout)
            sys.stdout, sys.stderr = before
    if told and told.errno not in (errno.EPIPE, errno.EIO):  # a pipe, or a terminal, whose other end has gone
        raise SystemExit(f"error: what this command tells could not be written: {told}")


def _lost(stream) -> OSError | None:
    """Why a stream of `_outputs` could not be written; None if it could."""
    return getattr(getattr(getattr(stream, "buffer", None), "raw", None), "error", None)


def _plainly(error: UnicodeEncodeError) -> tuple[str, int]:
    """What stands for characters that an encoding lacks, or for bytes that are no text."""
    text = error.object[error.start : error.end].translate(ASCII)
    return text.encode("ascii", "backslashreplace").decode(), error.end


def parse(kind: Any, **options) -> Any:
    """What tyro.cli makes of the command line, with `~` at the begin of a value made the home folder: a shell does not
    do it after `=` and in quotes."""
    import tyro

    try:
        return tyro.cli(kind, args=[_expanded(word) for word in sys.argv[1:]], **options)
    except SystemExit:
        print(end="", flush=True)
        if _lost(sys.stdout):
            raise SystemExit(UNREAD) from None
        raise


def _expanded(word: str) -> str:
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    expanded = os.path.expanduser(value)
    if expanded == value and (value == "~" or value.startswith("~/")):
        raise ValueError(f"{word}: this user has no home folder; give the whole path, or ./~ for a folder of that name")
    return option + equals + expanded
