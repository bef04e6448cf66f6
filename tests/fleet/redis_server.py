"""A real Redis (or Valkey) for a test, which may be killed, frozen or aged."""

import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import redis

from bridge.sim.ports import free_port
from scripts.fleet import program

START_SECONDS = 10.0


class RedisServer:
    """A server on a free port of this machine. `keep`: its data are on disk."""

    def __init__(self, folder: Path, *more: str, keep: bool = False) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._command = [
            *(program("redis-server"), "--port", str(self.port), "--bind", "127.0.0.1"),
            *("--save", "", "--appendonly", "yes" if keep else "no"),
            *("--dir", str(folder), *more),
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self.client = redis.Redis(port=self.port, socket_timeout=5)

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        until = time.monotonic() + START_SECONDS
        while not self._answers():
            assert time.monotonic() < until, "redis-server does not start"
            time.sleep(0.005)

    def stop(self) -> None:
        """Kills the server, as a power failure does."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None
        self.client.close()

    def freeze(self) -> None:
        assert self._process
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process
        self._process.send_signal(signal.SIGCONT)

    def let_pass(self, seconds: float) -> None:
        """Makes all keys older by so many seconds."""
        keys: Any = self.client.keys("*")
        for key in keys:
            if key.startswith((b"bridge:members:", b"bridge:in:")):  # scores are times
                inside: Any = self.client.zrange(key, 0, -1)
                for member in inside:
                    self.client.zincrby(key, -seconds * 1000, member)
            left: Any = self.client.pttl(key)
            if left > seconds * 1000:
                self.client.pexpire(key, int(left - seconds * 1000))
            else:
                self.client.delete(key)

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.AuthenticationError:  # a kind of ConnectionError
            return True
        except redis.ConnectionError:
            return False
