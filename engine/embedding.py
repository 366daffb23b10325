"""t-SNE and UMAP of rows in k dimensions, each in a process of its own: neither can be stopped from within.

The process gets a safetensors file, tells how far it is in the libraries' own words, and leaves a safetensors file.
`python -m engine.embedding IN OUT` is that process.
"""

import os
import re
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from engine.errors import EditingError
from engine.progress import Progress, silent

METHODS = ("pca", "tsne", "umap")
TITLES = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}
FEWEST_POINTS = 5
ITERATIONS = 1000
POLL_SECONDS = 0.1
MANY_POINTS = 4096  # from here on umap-learn searches neighbours approximately, unless it is given them
# scikit-learn says "[t-SNE] Iteration 50: error = …"; umap-learn's bar is given the other form.
STEP = re.compile(r"Iteration (\d+):|epoch (\d+)/(\d+)")


def clamped(method: str, count: int, options: Mapping[str, float]) -> tuple[dict[str, float], list[str]]:
    """The options as `count` points allow them, and a note for each that was changed."""
    chosen, notes = dict(options), []
    if method == "tsne":
        most = (count - 1) / 3
        if chosen["perplexity"] > most:
            chosen["perplexity"] = max(1.0, most)
            notes.append(
                f"Perplexity {chosen['perplexity']:.3g} instead of {options['perplexity']:g}: {count} points have no "
                "more neighbours to tell apart."
            )
    elif chosen["neighbours"] > count - 1:
        chosen["neighbours"] = count - 1
        notes.append(f"n_neighbors {count - 1} instead of {options['neighbours']:g}: there are {count} points.")
    return chosen, notes


def embed(
    rows: np.ndarray, method: str, options: Mapping[str, float], progress: Progress = silent
) -> tuple[np.ndarray, list[str]]:
    """(n, k) float32 → (n, 2) float32 by "tsne" or "umap", and notes.

    `options`: perplexity, neighbours, min_dist, seed.
    The same rows, options and seed give the same points. Raises EditingError for too few points or a failure;
    whatever `progress` raises ends the process.
    """
    title = TITLES[method]
    if len(rows) < FEWEST_POINTS:
        raise EditingError(f"{title} needs {FEWEST_POINTS} points or more, and there are {len(rows)}: choose PCA.")
    chosen, notes = clamped(method, len(rows), options)
    with tempfile.TemporaryDirectory(prefix="agrade-") as folder:
        source, target = Path(folder) / "rows.safetensors", Path(folder) / "points.safetensors"
        arrays = {name: np.array([value], dtype=np.float64) for name, value in chosen.items()}
        save_file({"rows": np.ascontiguousarray(rows, dtype=np.float32), **arrays}, source, {"method": method})
        command = [sys.executable, "-u", "-m", "engine.embedding", method, str(source), str(target)]
        process = subprocess.Popen(
            command,
            cwd=Path(__file__).resolve().parent.parent,
            # Threads that wait spinning keep a busy machine's cores from those that work: t-SNE took ten times as long.
            env={"OMP_WAIT_POLICY": "passive", **os.environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl+C is heard here, which then ends it
        )
        said: list[str] = []
        reader = threading.Thread(target=lambda: said.extend(process.stdout), daemon=True)
        reader.start()
        try:
            while process.poll() is None:
                progress(title, *_steps(said))
                try:
                    process.wait(POLL_SECONDS)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            reader.join()
            process.stdout.close()
        if process.returncode or not target.exists():
            reason = next((line.strip() for line in reversed(said) if line.strip()), "it ended without a word")
            raise EditingError(f"{title} did not succeed: {reason} Choose PCA, or fewer points.")
        points = load_file(target)["points"]
    if not np.isfinite(points).all():
        raise EditingError(f"{title} found no place for some of the points. Choose PCA, or scale by columns.")
    return points, notes


def _steps(said: list[str]) -> tuple[int, int]:
    """How far the process is, from its last line that tells."""
    for line in reversed(said):
        if found := STEP.search(line):
            iteration, epoch, epochs = found.groups()
            return (int(iteration), ITERATIONS) if iteration else (int(epoch), int(epochs))
    return 0, 0


def _compute(method: str, source: Path, target: Path) -> None:
    """The work itself, inside the process."""
    arrays = load_file(source)
    rows, seed = arrays["rows"], int(arrays["seed"][0])
    warnings.simplefilter("ignore")  # of libraries about each other
    if method == "tsne":
        from sklearn.manifold import TSNE

        reducer = TSNE(
            perplexity=float(arrays["perplexity"][0]), init="pca", max_iter=ITERATIONS, random_state=seed, verbose=2
        )
    else:
        from umap import UMAP

        keep_compiled("umap")
        neighbours = int(arrays["neighbours"][0])
        reducer = UMAP(
            n_neighbors=neighbours,
            precomputed_knn=nearest(rows, neighbours) if len(rows) >= MANY_POINTS else (None, None, None),
            min_dist=float(arrays["min_dist"][0]),
            # The spectral start needs more points than dimensions and neighbours.
            init="spectral" if len(rows) > 2 * FEWEST_POINTS else "random",
            random_state=seed,
            n_jobs=1,
            verbose=True,
            tqdm_kwds={"bar_format": "epoch {n_fmt}/{total_fmt}", "mininterval": 0.5},
        )
    points = np.asarray(reducer.fit_transform(rows), dtype=np.float32)
    save_file({"points": np.ascontiguousarray(points)}, target)


def keep_compiled(package: str) -> None:
    """Let numba keep on disk what it compiles of this imported package: of umap-learn, 18 seconds in each process."""
    from numba.core.dispatcher import Dispatcher

    for name, module in list(sys.modules.items()):
        if name.startswith(package + "."):
            for function in vars(module).values():
                if isinstance(function, Dispatcher) and function.py_func.__module__ == name:
                    function.enable_caching()


def nearest(rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices and distances (n, count) of every row's `count` nearest ones, itself first where no other is equal.

    Exact, and without the minute that umap-learn's approximate search takes to compile.
    """
    from sklearn.neighbors import NearestNeighbors

    distances, indices = NearestNeighbors(n_neighbors=count).fit(rows).kneighbors(rows)
    return indices, distances.astype(np.float32)


if __name__ == "__main__":
    _compute(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
