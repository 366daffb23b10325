"""Figures as image files: as large as they say, and nothing is asked of another machine."""

import shutil

import plotly.graph_objects as go
import pytest

from studio.drawing import draw_figures
from tests.studio.live import Trap

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@pytest.mark.skipif(not any(map(shutil.which, BROWSERS)), reason="no browser that could draw")
def test_pictures_are_drawn_and_no_other_machine_is_asked(tmp_path, monkeypatch):
    trap = Trap()
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, trap.url)
        monkeypatch.setenv(name.lower(), trap.url)
    monkeypatch.setenv("NO_PROXY", "")
    figures = {tmp_path / f"{height}.png": go.Figure(layout={"height": height}) for height in (200, 300)}
    try:
        draw_figures(figures, 400, scale=2)
    finally:
        trap.close()
    assert not trap.asked
    for path, figure in figures.items():
        head = path.read_bytes()[:24]
        assert head.startswith(b"\x89PNG")
        size = int.from_bytes(head[16:20]), int.from_bytes(head[20:24])
        assert size == (800, 2 * figure.layout.height)
