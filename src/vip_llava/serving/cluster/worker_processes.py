"""A whole cluster on one machine: worker processes that are started, watched and started again.

Each worker is the command `vip-llava worker` in a process of its own, so that a crash ends one of them
and not the server. The secret goes through its standard input, which also tells it when this process
is gone. Knows processes; what they serve and who asks is not its business.
"""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

from vip_llava.serving.cluster.signing import Secret

__all__ = ["LocalWorker", "LocalWorkers"]

MOST_RESTARTS, RESTART_WINDOW = 5, 600.0
"""A worker that ends more often than this many times in so many seconds is given up."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 15.0
_WRONG_COMMAND = 2
_KILL_SECONDS = 5.0

log = logging.getLogger("vip_llava.serving")


class LocalWorker:
    """One worker process. `given_up` is called, by a thread, when it is not started any more."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        secret: Secret,
        given_up: Callable[[str], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """name: of its model, for the log. arguments: those of `vip-llava worker`."""
        self.name = name
        self._command = [sys.executable, "-m", "vip_llava", "worker", "--managed", *arguments]
        self._secret, self._given_up, self._clock = secret, given_up, clock
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._ends: list[float] = []
        self._thread = threading.Thread(target=self._watch, name=f"worker-{name}", daemon=True)

    @property
    def pid(self) -> int | None:
        """Of the process that runs now, if one does."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def start(self) -> None:
        """Start it, and go on starting it when it ends."""
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """Let it end what it answers, for so many seconds at most; then it is ended."""
        self._stopping.set()
        with self._lock:
            process = self._process
        if process is not None:
            _close(process)
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                log.warning("worker %s does not stop: ending it", self.name)
                process.terminate()
                try:
                    process.wait(_KILL_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        while not self._stopping.is_set():
            code = self._run()
            if self._stopping.is_set():
                return
            pause = self._pause(code)
            if pause is None:
                return
            log.warning("worker %s ended (%s); starting it again", self.name, _how(code))
            self._stopping.wait(pause)

    def _run(self) -> int:
        """Start the process and wait for its end; its exit code."""
        with self._lock:
            if self._stopping.is_set():
                return 0
            # Of a session of its own: Ctrl-C is for this process, which lets workers end in order.
            process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=sys.stderr, start_new_session=True
            )
            self._process = process
        assert process.stdin is not None
        try:
            process.stdin.write(self._secret.text().encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended already; its code says why
        code = process.wait()
        _close(process)
        return code

    def _pause(self, code: int) -> float | None:
        """Seconds until the next start, None if there is none."""
        now = self._clock()
        self._ends = [end for end in self._ends if end > now - RESTART_WINDOW] + [now]
        if code == _WRONG_COMMAND:
            self._given_up(f"the worker of {self.name} can't start as asked (see above)")
            return None
        if len(self._ends) > MOST_RESTARTS:
            self._given_up(
                f"the worker of {self.name} ended {len(self._ends)} times within "
                f"{RESTART_WINDOW / 60:.0f} minutes, at last {_how(code)}"
            )
            return None
        return float(min(_FIRST_PAUSE * 2 ** (len(self._ends) - 1), _LONGEST_PAUSE))


class LocalWorkers:
    """The workers of one machine. Without any that is still started, `all_gone` is called once."""

    def __init__(self, all_gone: Callable[[], None]) -> None:
        self.workers: list[LocalWorker] = []
        self.reasons: list[str] = []
        """Why workers were given up."""
        self._all_gone = all_gone

    def add(self, name: str, arguments: Sequence[str], secret: Secret) -> None:
        """One more worker, to be started with the others."""
        self.workers.append(LocalWorker(name, arguments, secret, self._given_up))

    def start(self) -> None:
        """Start them all."""
        for worker in self.workers:
            worker.start()

    def stop(self, seconds: float) -> None:
        """Stop them all, at the same time."""
        threads = [threading.Thread(target=worker.stop, args=(seconds,)) for worker in self.workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _given_up(self, reason: str) -> None:
        self.reasons.append(reason)
        log.error("%s", reason)
        if len(self.reasons) == len(self.workers):
            self._all_gone()


def _close(process: subprocess.Popen[bytes]) -> None:
    """Close its standard input, which tells a managed worker to stop."""
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()


def _how(code: int) -> str:
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"
