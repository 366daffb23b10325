"""Figures as PNG files, drawn by a Chrome or Chromium of this machine that can reach no other one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

WIDTH, SCALE = 1100, 2
# A browser asks its maker for updates, accounts and more at every start. Nobody answers at this port.
NOWHERE = "127.0.0.1:9"


def write_pictures(figures: Mapping[Path, Any]) -> None:
    """Draw plotly figures into their files, as high as each says.

    Raises ImportError without kaleido, and kaleido's own errors without a browser that works.
    """
    import kaleido  # starts threads, and is for those who export

    drawings = [
        {"fig": figure, "path": path, "opts": {"format": "png", "width": WIDTH, "scale": SCALE}}
        for path, figure in figures.items()
    ]
    offline = {"mathjax": False, "proxy_server": NOWHERE}
    kaleido.write_fig_from_object_sync(drawings, kopts=offline, cancel_on_error=True)
