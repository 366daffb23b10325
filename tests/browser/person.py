"""What a person does on the studio's page, and what they read there. It knows the page's ids, so that no test does."""

import re
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Locator, Page, expect

from tests.studio.live import LiveStudio

# Milliseconds for what the model does: it may be slow, and other work may be before it.
PATIENCE = 240_000
ORIGINAL = "original weights"
# Everything the progress bar said, also between two looks at it.
RECORD = """
(bar) => { window.said = []; new MutationObserver(() => {
  const line = bar.innerText.trim(); if (line && line !== window.said.at(-1)) window.said.push(line);
}).observe(bar, {childList: true, subtree: true, characterData: true}); }
"""


@dataclass(frozen=True)
class Case:
    """A row of the case study. `result`: ✓ or ✗."""

    kind: str
    prompt: str
    target: str
    before: str
    after: str
    result: str


class Person:
    """Somebody in front of one page of the studio. `leaving`: the page is just being left."""

    def __init__(self, page: Page, studio: LiveStudio) -> None:
        self.page, self.studio, self.leaving = page, studio, False

    def at(self, id: str) -> Locator:
        return self.page.locator(f"#{id}")

    def open(self) -> None:
        """Open the page, until the model is there and the page knows its workspace."""
        self.page.goto(self.studio.url)
        self._entered()

    def reload(self) -> None:
        self.leaving = True
        self.page.reload()
        self.leaving = False
        self._entered()

    def _entered(self) -> None:
        expect(self.at("model")).to_contain_text("layers", timeout=PATIENCE)
        expect(self.at("hypernet").locator("input")).not_to_have_value("")

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name, exact=True).click()

    # Facts

    def upload(self, path: Path) -> None:
        with self.page.expect_file_chooser() as chooser:
            self.at("facts-upload").click()
        chooser.value.set_files(path)

    def cell(self, row: int, column: int) -> Locator:
        return self.page.get_by_test_id(f"cell-{row}-{column}")

    def type_into(self, row: int, column: int, text: str) -> None:
        """Replace what a cell of the sheet says."""
        self.cell(row, column).dblclick()
        self.cell(row, column).locator("textarea").fill(text)
        self.page.keyboard.press("Enter")

    def paste(self, text: str) -> None:
        """Paste what another program copied."""
        self.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        self.page.evaluate("text => navigator.clipboard.writeText(text)", text)
        self.page.keyboard.press("ControlOrMeta+V")

    def generate(self, facts: int) -> None:
        """Let the model's own continuation be shown for so many facts only."""
        if not self.at("generate").is_visible():
            self.at("settings").get_by_role("button", name="Settings").click()
        self.set("generate", str(facts))

    def set(self, id: str, text: str) -> None:
        """Type into a control that is in sight, and leave it."""
        box = self.at(id).locator("input, textarea")
        box.fill(text)
        box.blur()

    def choose(self, id: str, option: str) -> None:
        """Choose from a list."""
        self.at(id).locator("input").click()
        self.page.get_by_role("option", name=option, exact=True).click()

    # Edits

    def watch_progress(self) -> None:
        """Remember from now on what the progress bar says."""
        self.at("edit-progress").evaluate(RECORD)

    def start(self) -> None:
        """Press Apply, until the edit is going on."""
        self.watch_progress()
        self.at("apply").click()
        expect(self.at("cancel")).to_be_enabled()

    def finish(self) -> None:
        """Until the edit is over, however it ended."""
        expect(self.at("apply")).to_be_enabled(timeout=PATIENCE)
        expect(self.at("cancel")).to_be_disabled()

    def apply(self) -> None:
        self.start()
        self.finish()

    def said(self) -> list[str]:
        """What the progress bar has said while it was watched."""
        return self.page.evaluate("window.said")

    def come_back(self) -> None:
        """Look at this page again after another one."""
        self.page.bring_to_front()
        self.page.evaluate("window.dispatchEvent(new Event('focus'))")  # headless, every page has it always

    def badge(self, text: str, timeout: int | None = None) -> None:
        """Read the badge: it says `text`, if need be after a while."""
        expect(self.at("badge")).to_have_text(text, timeout=timeout)

    def cases(self) -> list[Case]:
        """The rows of the case study on the page."""
        rows = self.at("case-study").locator("tbody tr").evaluate_all(
            "rows => rows.map(row => [...row.cells].map(cell => cell.innerText.trim()))"
        )
        return [Case(kind, prompt, target, before, after, result[:1]) for _, kind, prompt, target, before, after, result in rows]

    def case(self, prompt: str) -> Case:
        return next(case for case in self.cases() if case.prompt == prompt)

    # Probe

    def probe(self, prompt: str) -> None:
        self.at("probe-prompt").locator("textarea").fill(prompt)
        self.at("probe").click()

    def side(self, name: str) -> Locator:
        """`before` or `after` of the last probe."""
        return self.at("probe-answer").locator(f".side.{name}")

    def chances(self, name: str) -> list[float]:
        """The probabilities of the likeliest next tokens, in percent."""
        texts = self.side(name).locator("td:last-child").all_inner_texts()
        return [float(re.sub(r"[^0-9.]", "", text)) for text in texts]
