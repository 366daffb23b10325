"""Figures as image files, drawn by a Chrome or Chromium of this machine that can reach no other one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

# A browser asks its maker for updates, accounts and more at every start. Nobody answers at this port.
NOWHERE = "127.0.0.1:9"


def draw_figures(figures: Mapping[Path, Any], width: int, height: int | None = None, scale: int = 2) -> None:
    """Draw plotly figures into their files, PNG or SVG by the suffix; without `height`, as high as each says.

    `scale`: pixels of a PNG for each of its points. Raises ImportError without kaleido, and kaleido's own errors
    without a browser that works.
    """
    import kaleido  # starts threads, and is for those who export

    drawings = []
    for path, figure in figures.items():
        kind = path.suffix[1:]
        size = {"width": width} | ({"height": height} if height else {})
        drawings.append(
            {"fig": figure, "path": path, "opts": {"format": kind, "scale": scale if kind == "png" else 1} | size}
        )
    offline = {"mathjax": False, "proxy_server": NOWHERE}
    kaleido.write_fig_from_object_sync(drawings, kopts=offline, cancel_on_error=True)
