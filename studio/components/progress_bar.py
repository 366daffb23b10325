"""The slim bar: which stage a job is in, how far, and how long it will still take. It only reads snapshots."""

from collections.abc import Iterator

from studio.components.markup import gigabytes, seconds, text
from studio.jobs import Jobs, Snapshot

WATCH_SECONDS = 0.5
# Words of the stages that count bytes.
IN_BYTES = ("ownloading", "Packing")
CSS = """
.bar-line { display: flex; justify-content: space-between; gap: 12px; font-size: var(--text-sm);
  font-variant-numeric: tabular-nums; }
.bar-line span:last-child { color: var(--body-text-color-subdued); white-space: nowrap; }
.bar.waiting > div { width: 100%; opacity: .35; }
"""


def bar_html(shot: Snapshot) -> str:
    """The bar of a job that is waiting or working; "" once it has ended."""
    if shot.ended:
        return ""
    if shot.state == "queued":
        ahead = f"{shot.position} in the queue" if shot.position else "next"
        return _bar(f"{shot.title}: waiting for other work on this model", ahead, None)
    so_far = f"{seconds(shot.seconds)} so far"
    if shot.cancelling:
        return _bar(f"Cancelling {shot.title}", so_far, None)
    if shot.total <= 1:
        return _bar(shot.stage or "Starting", so_far, None)
    share = min(1.0, shot.done / shot.total)
    units = gigabytes if any(word in shot.stage for word in IN_BYTES) else lambda number: f"{number:,}"
    left = "" if shot.eta is None or share == 1 else f" · {seconds(max(0.1, shot.eta))} left"
    counted = f"{shot.stage} · {units(shot.done)} of {units(shot.total)}"
    return _bar(counted, f"{share:.0%}{left} · {so_far}", share)


def watch(jobs: Jobs, id: str) -> Iterator[tuple[Snapshot, str]]:
    """Each new snapshot with its bar, until the job ends. Closing it leaves the job running."""
    last = None
    for shot in jobs.watch(id, WATCH_SECONDS):
        shown = bar_html(shot)
        if shown != last or shot.ended:
            yield shot, shown
        last = shown


def _bar(left: str, right: str, share: float | None) -> str:
    percent = "" if share is None else f' aria-valuenow="{share * 100:.0f}"'
    width = "" if share is None else f' style="width: {share:.1%}"'
    return (
        f'<div class="bar-line"><span>{text(left)}</span><span>{text(right)}</span></div>'
        f'<div class="bar{" waiting" if share is None else ""}" role="progressbar" aria-label="{text(left)}"'
        f' aria-valuemin="0" aria-valuemax="100"{percent}><div{width}></div></div>'
    )
