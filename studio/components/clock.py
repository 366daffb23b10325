"""Moments as people read them. The database keeps UTC; this machine's clock is what stands beside the screen."""

from datetime import datetime


def moment(iso: str | None) -> str:
    """A UTC ISO time as local time: 2026-01-31 17:05; – where there is none."""
    return datetime.fromisoformat(iso).astimezone().strftime("%Y-%m-%d %H:%M") if iso else "–"
