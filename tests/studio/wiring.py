"""What a page does by itself when something happens on it, read from the page as it was made."""

from typing import Any

from gradio import Blocks
from gradio.blocks import Block


def page_of(part: Block) -> Blocks:
    while part.parent is not None:
        part = part.parent
    return part


def emptied_by(part: Any) -> set[tuple[int, str]]:
    """The events after which the page empties it without asking the server."""
    listeners = [one for one in page_of(part).fns.values() if one.fn is None and one.outputs == [part]]
    return {target for one in listeners if one.js == "() => ''" for target in one.targets}


def listeners(page: Blocks, name: str) -> list[Any]:
    """Those events whose handler has that name."""
    return [one for one in page.fns.values() if one.fn is not None and one.fn.__name__ == name]


def comes_back(part: Any, name: str) -> set[tuple[int, str]]:
    """The events after which the handler of that name is asked, beside what else is asked after them."""
    page = page_of(part)
    (listener,) = listeners(page, name)
    before = page.fns[listener.trigger_after]
    return set(before.targets) if before.fn is None else set()
