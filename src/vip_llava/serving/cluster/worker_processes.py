"""`WorkerProcesses`: starts the workers of one machine, watches and restarts them.

Each worker runs `vip-llava worker` in its own process, so that a crash does not end the server. It
reads the secret from standard input, whose end also tells it that this process is gone. This
module does not know models or requests.
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

__all__ = ["WorkerProcess", "WorkerProcesses"]

MAX_RESTARTS, RESTART_WINDOW = 5, 600.0
"""A worker that exits more often than this within the window (seconds) is given up."""
_MIN_BACKOFF, _MAX_BACKOFF = 0.5, 15.0
_USAGE_ERROR = 2
_KILL_SECONDS = 5.0

log = logging.getLogger("vip_llava.serving")


class WorkerProcess:
    """One worker process with restarts."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        secret: Secret,
        on_give_up: Callable[[str], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            name: of its model, for the log.
            arguments: of `vip-llava worker`.
            on_give_up: called in a thread with the reason when it is not restarted any more.
        """
        self.name = name
        self._command = [sys.executable, "-m", "vip_llava", "worker", "--managed", *arguments]
        self._secret, self._on_give_up, self._clock = secret, on_give_up, clock
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._exits: list[float] = []
        self._thread = threading.Thread(target=self._watch, name=f"worker-{name}", daemon=True)

    @property
    def pid(self) -> int | None:
        """The id of the running process, or None."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def start(self) -> None:
        """Start the process, and restart it when it exits."""
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """Let it finish its requests for at most `seconds`, then terminate it."""
        self._stopping.set()
        with self._lock:
            process = self._process
        if process is not None:
            _close(process)
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                log.warning("worker %s does not stop; terminating it", self.name)
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
            backoff = self._backoff(code)
            if backoff is None:
                return
            log.warning("worker %s exited (%s); restarting it", self.name, _describe(code))
            self._stopping.wait(backoff)

    def _run(self) -> int:
        """Start the process and wait for its exit code."""
        with self._lock:
            if self._stopping.is_set():
                return 0
            # In its own session: Ctrl-C reaches this process only, which stops workers in order.
            process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=sys.stderr, start_new_session=True
            )
            self._process = process
        assert process.stdin is not None
        try:
            process.stdin.write(self._secret.text().encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass  # it has exited already; its code tells why
        code = process.wait()
        _close(process)
        return code

    def _backoff(self, code: int) -> float | None:
        """Seconds until the restart, or None to give up."""
        now = self._clock()
        self._exits = [end for end in self._exits if end > now - RESTART_WINDOW] + [now]
        if code == _USAGE_ERROR:
            self._on_give_up(f"the worker of {self.name} can't start (see above)")
            return None
        if len(self._exits) > MAX_RESTARTS:
            self._on_give_up(
                f"the worker of {self.name} exited {len(self._exits)} times within "
                f"{RESTART_WINDOW / 60:.0f} minutes, the last time with {_describe(code)}"
            )
            return None
        return float(min(_MIN_BACKOFF * 2 ** (len(self._exits) - 1), _MAX_BACKOFF))


class WorkerProcesses:
    """The worker processes of one machine; `on_all_given_up` is called when none is left."""

    def __init__(self, on_all_given_up: Callable[[], None]) -> None:
        self.workers: list[WorkerProcess] = []
        self.reasons: list[str] = []
        """Why workers were given up."""
        self._on_all_given_up = on_all_given_up

    def add(self, name: str, arguments: Sequence[str], secret: Secret) -> None:
        """Add a worker for `start`."""
        self.workers.append(WorkerProcess(name, arguments, secret, self._record_give_up))

    def start(self) -> None:
        """Start all workers."""
        for worker in self.workers:
            worker.start()

    def stop(self, seconds: float) -> None:
        """Stop all workers in parallel; `seconds` as of `WorkerProcess.stop`."""
        threads = [threading.Thread(target=worker.stop, args=(seconds,)) for worker in self.workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _record_give_up(self, reason: str) -> None:
        self.reasons.append(reason)
        log.error("%s", reason)
        if len(self.reasons) == len(self.workers):
            self._on_all_given_up()


def _close(process: subprocess.Popen[bytes]) -> None:
    """Close its standard input, which tells a managed worker to stop."""
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()


def _describe(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
