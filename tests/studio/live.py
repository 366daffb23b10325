"""A studio in a process of its own, started as a person starts it: `python app.py`.

Its database and cache lie in a folder of the test. What it would fetch from elsewhere is caught, and fails the test.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from gradio_client import Client
from gradio_client.exceptions import AppError

from engine.embedded import CACHE_VARIABLE

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 180
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class LiveStudio:
    """The running program. `folder` holds its database, its cache and what it printed."""

    process: subprocess.Popen
    port: int
    folder: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def db(self) -> Path:
        return self.folder / "studio.db"

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    def printed(self) -> str:
        return (self.folder / "printed.txt").read_text(encoding="utf-8", errors="replace")

    def client(self) -> closing[Client]:
        """A client with a workspace of its own, closed at the end of its `with`."""
        direct = {"trust_env": False}  # past the proxies of the environment
        return closing(Client(self.url, verbose=False, analytics_enabled=False, httpx_kwargs=direct))

    def wait_for_the_model(self) -> None:
        """Until a probe is answered, which waits for the model; right after the start it may be refused."""
        give_up = time.monotonic() + PATIENCE_SECONDS
        with self.client() as client:
            while True:
                try:
                    client.predict(prompt="The", api_name="/probe")
                    return
                except AppError as error:
                    assert "not loaded yet" in str(error) and time.monotonic() < give_up, self.printed()
                    time.sleep(POLL_SECONDS)


class Trap:
    """A proxy that serves nobody and remembers what it was asked for: `asked`, the first line of each request."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                self.asked.append(connection.recv(500).partition(b"\r\n")[0].decode(errors="replace"))

    def close(self) -> None:
        self._socket.close()


@contextmanager
def serve(folder: Path, *arguments: object) -> Iterator[LiveStudio]:
    """`python app.py` with these arguments, from the moment on that it answers; ended afterwards in any case.

    Raises AssertionError when it ends early, when it asked for anything elsewhere, and when it printed a traceback.
    """
    folder.mkdir(parents=True, exist_ok=True)
    trap, port = Trap(), _free_port()
    proxies = {name: trap.url for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")}
    proxies |= {"NO_PROXY": "127.0.0.1,localhost"}
    kept = {name: value for name, value in os.environ.items() if not name.upper().endswith("_PROXY")}
    environment = kept | proxies | {CACHE_VARIABLE: str(folder / "cache")}
    command = [sys.executable, "app.py", "--port", str(port), "--db", str(folder / "studio.db"), *map(str, arguments)]
    with (folder / "printed.txt").open("wb") as printed:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=printed, stderr=subprocess.STDOUT, preexec_fn=_hear_ctrl_c
        )
    studio = LiveStudio(process, port, folder)
    try:
        _wait_until_it_answers(studio)
        yield studio
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        trap.close()
    assert not trap.asked, f"The studio asked other machines: {trap.asked}"
    assert "Traceback" not in studio.printed(), studio.printed()


def _hear_ctrl_c() -> None:
    """A shell's background job, and all it starts, ignores SIGINT unless told otherwise."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _wait_until_it_answers(studio: LiveStudio) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    give_up = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < give_up:
        assert studio.process.poll() is None, f"The studio ended by itself:\n{studio.printed()}"
        try:
            with direct.open(studio.url, timeout=10):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(POLL_SECONDS)
    raise AssertionError(f"The studio did not answer in {PATIENCE_SECONDS} s:\n{studio.printed()}")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]
