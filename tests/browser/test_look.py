"""Every tab fits the window, light and dark: nothing is wider than the page, no button is cut off."""

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser
WIDTHS = (1440, 800)
TABS = {
    "Edit": "apply",
    "Compare": "compare",
    "Projections": "project-draw",
    "Train": "train-start",
    "History": "history-table",
}
# A button is cut off when its words stick out of it, or when it sticks out of something that does not scroll.
CUT_OFF = """
() => {
  const found = [];
  const page = document.scrollingElement;
  const outside = (box, edge) => box.left < edge.left - 1 || box.right > edge.right + 1;
  if (page.scrollWidth > innerWidth) found.push(`the page is ${page.scrollWidth} px wide`);
  for (const button of document.querySelectorAll('button, [role=tab], [role=button]')) {
    const box = button.getBoundingClientRect(), name = button.innerText.trim() || button.ariaLabel;
    const seen = button.checkVisibility({visibilityProperty: true, opacityProperty: true});
    if (seen && box.width && !name && !button.querySelector('svg, img')) found.push(`#${button.id} says nothing`);
    if (!seen || !box.width || !name || button.closest('.visually-hidden, [aria-hidden=true]')) continue;
    const texts = document.createTreeWalker(button, NodeFilter.SHOW_TEXT), range = document.createRange();
    while (texts.nextNode()) {
      if (!/\\w/.test(texts.currentNode.data)) continue;  // an arrow that is turned
      range.selectNodeContents(texts.currentNode);
      if ([...range.getClientRects()].some(part => outside(part, box))) found.push(`“${name}” does not hold its words`);
    }
    for (let around = button.parentElement; around !== page && around; around = around.parentElement) {
      const overflow = getComputedStyle(around).overflowX;
      if (overflow === 'auto' || overflow === 'scroll') break;
      if (overflow !== 'visible' && outside(box, around.getBoundingClientRect())) found.push(`“${name}” is cut off`);
    }
  }
  return found;
}
"""
BRIGHTNESS = "() => getComputedStyle(document.body).backgroundColor.match(/[\\d.]+/g).slice(0, 3).map(Number)"


def test_every_tab_fits_the_window_in_both_schemes(person, facts_file):
    person.upload(facts_file)
    expect(person.at("facts-status")).to_contain_text("2 facts")
    person.apply()
    found = []
    for scheme in ("light", "dark"):
        person.page.emulate_media(color_scheme=scheme)
        person.reload()
        expect(person.at("result-cards")).to_be_visible()
        background = person.page.evaluate(BRIGHTNESS)
        assert (max(background) < 80) if scheme == "dark" else (min(background) > 200), (scheme, background)
        for width in WIDTHS:
            person.page.set_viewport_size({"width": width, "height": 1000})
            for tab, landmark in TABS.items():
                person.tab(tab)
                expect(person.at(landmark)).to_be_visible()
                found += [f"{scheme}, {width} px, {tab}: {words}" for words in person.page.evaluate(CUT_OFF)]
            person.tab("Edit")
            if person.at("case-study").locator(".wide").evaluate("table => table.scrollWidth > table.clientWidth"):
                found.append(f"{scheme}, {width} px: the case study has to be scrolled sideways")
    assert not found, "\n".join(found)

