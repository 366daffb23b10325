"""A page's event streams end quietly once it is left; what else goes wrong in them is still heard."""

import asyncio

import pytest
from starlette.exceptions import HTTPException

from studio.streams import LeftStreams

BEGIN = {"type": "http.response.start", "status": 200, "headers": []}
END = {"type": "http.response.body", "body": b"", "more_body": False}


def run(error: Exception, path: str = "/gradio_api/queue/data", leave: bool = False, begin: bool = True) -> list[dict]:
    """What is sent by a route that begins to answer, hears of the client, and then raises `error`."""
    sent: list[dict] = []

    async def route(_scope, receive, send):
        if begin:
            await send(BEGIN)
        await receive()
        raise error

    async def receive():
        return {"type": "http.disconnect" if leave else "http.request"}

    async def send(message):
        sent.append(message)

    asyncio.run(LeftStreams(route)({"type": "http", "path": path}, receive, send))
    return sent


def forgotten() -> Exception:
    """What Starlette makes of a 404 that is raised once the answer has begun."""
    error = RuntimeError("Caught handled exception, but response already started.")
    error.__cause__ = HTTPException(404)
    return error


@pytest.mark.parametrize("error, leave", [(KeyError("session"), True), (forgotten(), False), (HTTPException(404), False)])
def test_a_stream_whose_page_is_gone_ends(error, leave):
    assert run(error, leave=leave) == [BEGIN, END]


@pytest.mark.parametrize(
    "error, path, leave, begin",
    [
        (KeyError("session"), "/gradio_api/queue/data", False, True),
        (ZeroDivisionError(), "/gradio_api/queue/data", True, True),
        (RuntimeError("another"), "/gradio_api/queue/data", True, True),
        (HTTPException(404), "/gradio_api/queue/data", True, False),
        (KeyError("session"), "/gradio_api/queue/join", True, True),
    ],
)
def test_other_errors_are_heard(error, path, leave, begin):
    with pytest.raises(type(error)):
        run(error, path, leave, begin)
