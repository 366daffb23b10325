"""One studio with the embedded model and one Chromium for all browser tests; every test enters as a new person.

A test fails on an error in the browser's console and on any request that would leave the machine.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Route, expect, sync_playwright

from engine import embedded
from tests.browser.person import Person
from tests.studio.live import LiveStudio, serve

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
LOCAL = ("127.0.0.1", "localhost")
STEP_MILLISECONDS = 60_000
# What Gradio says when a page is left while it still listens to an event. It concerns the page that goes.
LEAVING = (
    "AbortError: signal is aborted without reason",
    "Unexpected error Connection errored out.",
    "Unexpected error 404: Not Found",
)

# The pictures of the README are taken only when asked for.
collect_ignore = [] if os.environ.get("AGRADE_STUDIO_SCREENSHOTS") else ["test_screenshots.py"]

Enter = Callable[..., Person]


@pytest.fixture(scope="package")
def studio(embedded_folder, tmp_path_factory) -> Iterator[LiveStudio]:
    """The running studio; its database and its trainings lie in a folder of the tests."""
    folder = tmp_path_factory.mktemp("studio")
    (folder / "cache").mkdir()
    (folder / "cache" / embedded.NAME).symlink_to(embedded_folder, target_is_directory=True)
    with serve(folder) as studio:
        yield studio


@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    """The system's browser, as Playwright's own would have to be downloaded."""
    path = next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if path is None:
        pytest.skip(f"No browser: none of {', '.join(CHROMIUMS)} is on the PATH. Install one of them.")
    expect.set_options(timeout=STEP_MILLISECONDS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def enter(studio, chromium) -> Iterator[Enter]:
    """enter(width, height): a person in a browser of their own, with the page open and the model loaded."""
    contexts, problems = [], []

    def refuse(route: Route) -> None:
        problems.append(f"A request left the machine: {route.request.url}")
        route.abort()

    def watch(person: Person) -> None:
        def heard(said: ConsoleMessage) -> None:
            if said.type == "error" and not (person.leaving and said.text.startswith(LEAVING)):
                problems.append(f"Console: {said.text}")

        person.page.on("console", heard)
        person.page.on("pageerror", lambda error: problems.append(f"Uncaught in the page: {error}"))

    def open_page(width: int = 1440, height: int = 1000) -> Person:
        context = chromium.new_context(viewport={"width": width, "height": height}, service_workers="block")
        contexts.append(context)
        context.set_default_timeout(STEP_MILLISECONDS)
        context.route(lambda url: not stays(url), refuse)
        person = Person(context.new_page(), studio)
        watch(person)
        person.open()
        return person

    yield open_page
    for context in contexts:
        context.close()
    assert not problems, "\n".join(problems)


@pytest.fixture
def person(enter) -> Person:
    """Someone who has just opened the studio for the first time."""
    return enter()


@pytest.fixture
def facts_file(tmp_path) -> Path:
    """Two facts that the embedded model knows otherwise."""
    path = tmp_path / "facts.csv"
    path.write_text(
        "prompt,target,equivalent,unrelated,unrelated_answer\n"
        "The capital of France is,Rome,France has its capital in the city of,The capital of Italy is,Rome\n"
        "The Eiffel Tower stands in the city of,Oslo,,The Colosseum stands in the city of,Rome\n",
        encoding="utf-8",
    )
    return path


def stays(url: str) -> bool:
    """Whether a request for it stays on this machine."""
    parts = urlsplit(url)
    return parts.scheme in ("data", "blob", "about") or parts.hostname in LOCAL
