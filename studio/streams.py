"""A page that is left ends its event streams without a traceback in the terminal.

Gradio forgets a page's messages when the first of its streams is cut off; another one of the same page, which is just
being cut off too, then fails on what is gone. Nobody listens to it any more.
"""

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

STREAM = "/queue/data"


class LeftStreams:
    """ASGI middleware around Gradio's routes: an event stream ends where Gradio has forgotten its page.

    Everything else, and every other error, passes through.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].endswith(STREAM):
            await self.app(scope, receive, send)
            return
        left = begun = False

        async def hear() -> Message:
            nonlocal left
            message = await receive()
            left = left or message["type"] == "http.disconnect"
            return message

        async def tell(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, hear, tell)
        except (HTTPException, RuntimeError, KeyError) as error:
            unknown = isinstance(error, HTTPException) or isinstance(error.__cause__, HTTPException)
            twice_forgotten = left and isinstance(error, KeyError)
            if not begun or not (unknown or twice_forgotten):
                raise
            await send({"type": "http.response.body", "body": b"", "more_body": False})
