"""A dropdown whose choices change under the page: with another model, a training's end, a run that is done."""

from typing import Any

import gradio as gr


class ChangingDropdown(gr.Dropdown):
    """A page may still send what it was offered before: that counts as no choice, where gr.Dropdown raises."""

    is_template = True  # Gradio's mark of a component that the page draws as its parent

    def preprocess(self, payload: Any) -> Any:
        known = [value for _, value in self.choices]
        return super().preprocess(payload if payload in known else None)
