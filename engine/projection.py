"""Rows of matrices → points in two dimensions: standardised, PCA to k, then PCA-2, t-SNE or UMAP.

Every matrix of one plot goes through one fitted basis, so that the distance between two points means the same wherever
they came from. M has D_h columns and HᵀG has D_g: where widths differ, each width is first reduced to k dimensions by
a PCA of its own, and `Basis.notes` says so. It knows no edit: matrices in, points out (`engine.cloud` names them).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from engine.embedding import METHODS, TITLES, embed
from engine.errors import EditingError
from engine.progress import Progress, silent

SCALINGS = ("quantity", "columns", "none")
# Up to this width the covariance's eigenvectors are found exactly; above it by a randomised SVD.
EXACT_WIDTH = 1024


@dataclass(frozen=True)
class ProjectionSettings:
    """How rows become points."""

    method: str = field(
        default="tsne",
        metadata={"help": "from k dimensions to two: linear, or keeping neighbours together", "choices": METHODS},
    )
    scaling: str = field(
        default="quantity",
        metadata={
            "help": "quantity: each of M, HᵀG, Δθ, … is divided by its root mean square, before and after Eq. 4 by the "
            "same one; columns: then every column to mean 0 and variance 1; none: as computed",
            "choices": SCALINGS,
        },
    )
    components: int = field(default=50, metadata={"help": "k, the dimensions that the first PCA keeps"})
    perplexity: float = field(default=30.0, metadata={"help": "t-SNE: how many neighbours a point has, roughly"})
    neighbours: int = field(default=15, metadata={"help": "UMAP: n_neighbors, how many neighbours a point has"})
    min_dist: float = field(default=0.1, metadata={"help": "UMAP: how near to each other points may lie"})
    sample: int = field(default=400, metadata={"help": "points of each matrix, at most; drawn with the seed"})
    seed: int = field(default=0, metadata={"help": "of the sample, of the PCA, of t-SNE and of UMAP"})

    def check(self) -> "ProjectionSettings":
        """The settings themselves. Raises EditingError for a value that cannot be used."""
        for name, known in (("method", METHODS), ("scaling", SCALINGS)):
            if getattr(self, name) not in known:
                raise EditingError(f"{name.capitalize()} {getattr(self, name)!r}: choose {', '.join(known)}.")
        lowest = {"components": 2, "perplexity": 1, "neighbours": 2, "min_dist": 0, "sample": 2, "seed": 0}
        for name, least in lowest.items():
            if not getattr(self, name) >= least:
                raise EditingError(f"{name.capitalize()} {getattr(self, name):g}: {least} is the least.")
        if self.min_dist > 1 or self.seed >= 2**32:
            raise EditingError("Min_dist is at most 1, and the seed below 2^32.")
        return self


@dataclass(frozen=True)
class Basis:
    """All rows in the k dimensions they share.

    scores: (n, k) float32 of each matrix. explained: width → the share of the variance that k dimensions keep.
    linear: the first two principal components, (n, 2) of each matrix; shares: what each of the two explains of the
    variance, where widths differ of that in k dimensions.
    notes: what was clamped, and that widths differ.
    """

    scores: list[np.ndarray]
    explained: dict[int, float]
    linear: list[np.ndarray]
    shares: tuple[float, float]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Projection:
    """points: (n, 2) float32 of each matrix. axes: the titles of the two axes. notes: what a reader should know."""

    points: list[np.ndarray]
    axes: tuple[str, str]
    explained: dict[int, float]
    notes: tuple[str, ...]


def fit_basis(matrices: Sequence[np.ndarray], quantities: Sequence[str], settings: ProjectionSettings) -> Basis:
    """One basis for rows (n_i, width_i). `quantities`: matrices of the same one are scaled by the same number.

    Raises EditingError when there are fewer than two different rows, or a value is not finite.
    """
    from sklearn.decomposition import PCA  # seconds, which only a picture should cost

    _check(matrices)
    notes: list[str] = []
    scaled = _scaled(matrices, quantities, settings.scaling)
    widths = list(dict.fromkeys(rows.shape[1] for rows in scaled))
    smallest = min(min(width, _count(scaled, width)) for width in widths)
    k = min(settings.components, smallest)
    if k < settings.components:
        notes.append(f"PCA keeps {k} dimensions instead of {settings.components}: there are no more.")
    explained, scores = {}, [np.empty(0)] * len(scaled)
    for width in widths:
        members = [at for at, rows in enumerate(scaled) if rows.shape[1] == width]
        reduced, explained[width] = _reduced(np.concatenate([scaled[at] for at in members]), k, settings)
        parts = np.split(reduced, np.cumsum([len(scaled[at]) for at in members])[:-1])
        for at, part in zip(members, parts):
            scores[at] = part
    if len(widths) > 1:
        listed = " and ".join(str(width) for width in widths)
        notes.append(
            f"Rows of {listed} columns: each width is first reduced to {k} dimensions by a PCA of its own, so that "
            "only distances between matrices of one width mean something."
        )
    flat = np.concatenate(scores).astype(np.float64)
    if not np.ptp(flat, axis=0).any():
        raise EditingError("All rows are the same, so there is nothing to tell apart in a picture.")
    pca = PCA(n_components=2, svd_solver="covariance_eigh")
    linear = _signed(pca.fit_transform(np.pad(flat, ((0, 0), (0, max(0, 2 - k))))))
    kept = next(iter(explained.values())) if len(widths) == 1 else 1.0
    shares = tuple(float(kept * share) for share in pca.explained_variance_ratio_)
    ends = np.cumsum([len(rows) for rows in scores])[:-1]
    return Basis(scores, explained, np.split(linear.astype(np.float32), ends), shares, tuple(notes))


def linear_projection(basis: Basis) -> Projection:
    """The first two principal components: there at once, and distances stay what they are."""
    whole = "the variance" if len(basis.explained) == 1 else "the reduced variance"
    axes = tuple(f"PC {n} ({share:.1%} of {whole})" for n, share in enumerate(basis.shares, 1))
    return Projection(basis.linear, axes, basis.explained, basis.notes)


def project(basis: Basis, settings: ProjectionSettings, progress: Progress = silent) -> Projection:
    """The points by the method of the settings. Raises Cancelled when `progress` does, EditingError if it fails."""
    if settings.method == "pca":
        return linear_projection(basis)
    points, notes = embed(
        np.concatenate(basis.scores),
        settings.method,
        {
            "perplexity": settings.perplexity,
            "neighbours": settings.neighbours,
            "min_dist": settings.min_dist,
            "seed": settings.seed,
        },
        progress,
    )
    ends = np.cumsum([len(rows) for rows in basis.scores])[:-1]
    title = TITLES[settings.method]
    return Projection(np.split(points, ends), (f"{title} 1", f"{title} 2"), basis.explained, (*basis.notes, *notes))


def _check(matrices: Sequence[np.ndarray]) -> None:
    count = sum(len(rows) for rows in matrices)
    if count < 2:
        raise EditingError(f"There {'is one point' if count else 'is no point'} to draw: a picture needs two or more.")
    if not all(np.isfinite(rows).all() for rows in matrices):
        raise EditingError("A matrix holds values that are not finite, so it cannot be drawn.")


def _count(matrices: Sequence[np.ndarray], width: int) -> int:
    return sum(len(rows) for rows in matrices if rows.shape[1] == width)


def _scaled(matrices: Sequence[np.ndarray], quantities: Sequence[str], scaling: str) -> list[np.ndarray]:
    """Float64 copies; each quantity is divided by its root mean square, then maybe each column standardised."""
    rows = [matrix.astype(np.float64) for matrix in matrices]
    if scaling == "none":
        return rows
    for quantity in set(quantities):
        own = [matrix for matrix, name in zip(rows, quantities) if name == quantity]
        size = np.sqrt(sum((matrix**2).sum() for matrix in own) / max(sum(matrix.size for matrix in own), 1))
        for matrix in own:
            matrix /= size or 1.0
    if scaling == "columns":
        for width in {matrix.shape[1] for matrix in rows}:
            own = [matrix for matrix in rows if matrix.shape[1] == width]
            flat = np.concatenate(own)
            mean, deviation = flat.mean(0), flat.std(0)
            for matrix in own:
                matrix -= mean
                matrix /= np.where(deviation > 0, deviation, 1.0)
    return rows


def _reduced(rows: np.ndarray, k: int, settings: ProjectionSettings) -> tuple[np.ndarray, float]:
    """(n, width) → (n, k) float32, and the share of the variance kept."""
    from sklearn.decomposition import PCA

    solver = "covariance_eigh" if rows.shape[1] <= EXACT_WIDTH else "randomized"
    pca = PCA(n_components=k, svd_solver=solver, random_state=settings.seed)
    with np.errstate(invalid="ignore"):
        scores = pca.fit_transform(rows)
    share = float(np.nan_to_num(pca.explained_variance_ratio_.sum(), nan=1.0))  # equal rows vary by nothing
    return _signed(scores).astype(np.float32), share


def _signed(scores: np.ndarray) -> np.ndarray:
    """The sign of a component is arbitrary: its longest score is made positive, so that runs agree."""
    longest = scores[np.abs(scores).argmax(0), np.arange(scores.shape[1])]
    return scores * np.where(longest < 0, -1.0, 1.0)
