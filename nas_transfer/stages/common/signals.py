"""SIGTERM and SIGINT end a run with a sentence and the usual exit code. A training first saves its state.

By default the run ends where it is, and the same command continues from what is on disk. A training holds the signals
back until its current step is done. A second signal ends it at once.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Collection
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)
WORDS = {signal.SIGTERM: "terminated", signal.SIGINT: "interrupted"}


class EndedBySignal(BaseException):
    """A signal ends the run. It is no `Exception`, so that no failed trial is made of it."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.number = number


class SignalReceiver:
    """Receives the signals that end a run.

    Attributes:
        pending: the first signal that was received, None before.
    """

    def __init__(self) -> None:
        self.pending: signal.Signals | None = None
        self._held: frozenset[int] = frozenset()
        self._process = 0

    def install(self) -> None:
        """Receive the signals of this process from now on, except those that its parent made it ignore."""
        self.pending, self._held, self._process = None, frozenset(), os.getpid()
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self.receive)

    def reclaim(self) -> None:
        """Receive SIGTERM again where another library has registered its own handler since `install`."""
        if self._process == os.getpid() and signal.getsignal(signal.SIGTERM) != signal.SIG_IGN:
            signal.signal(signal.SIGTERM, self.receive)

    def hold(self, numbers: Collection[signal.Signals]) -> None:
        """Only note these signals from now on; others end the run at once."""
        self._held = frozenset(numbers)

    def receive(self, number: int, _: FrameType | None) -> None:
        """Handle a signal: end the run, unless this signal is held back and the first one."""
        if os.getpid() != self._process:  # a data loading process, which has inherited this handler
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        first, self.pending = self.pending is None, self.pending or signal.Signals(number)
        if first and number in self._held:
            return
        self._held = frozenset()
        if number == signal.SIGINT:
            raise KeyboardInterrupt  # Lightning stops the processes that it started
        raise EndedBySignal(self.pending)


RECEIVER = SignalReceiver()
"""The receiver of this process. Nothing is received before it is installed."""
