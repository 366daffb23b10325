"""The hypernetwork: (H, ∇G) → (H̃, ∇G̃), with the step size η and the regulariser λ of each module.

It knows nothing of language models; its checkpoint on disk is `engine.checkpoint`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from engine.model import EditModule

STD_FLOOR = 1e-7


class Normaliser(nn.Module):
    """Running mean and standard deviation of one module's features [H, ∇G], D = D_h + D_g of them.

    `update` takes rows in (Chan's parallel form of Welford's algorithm); `forward` only reads.
    Before the first row it is the identity.
    """

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("square", torch.zeros(width))  # Σ (x − mean)²

    @torch.no_grad()
    def update(self, rows: Tensor) -> None:
        """Take in rows (T, D)."""
        total = self.count + len(rows)
        mean = rows.mean(0)
        shift = mean - self.mean
        self.square += (rows - mean).square().sum(0) + shift.square() * (self.count * len(rows) / total)
        self.mean += shift * (len(rows) / total)
        self.count.copy_(total)

    def forward(self, rows: Tensor) -> Tensor:
        """(T, D) → (T, D), zero mean and unit variance over the rows seen in training.

        A feature that never changed there says nothing, and is 0: a relu's unit that first fires now would be 1e7 times
        as large as any other.
        """
        if self.count < 2:
            return rows
        std = (self.square / (self.count - 1)).sqrt() + STD_FLOOR
        return ((rows - self.mean) / std).masked_fill(self.square == 0, 0.0)


class Block(nn.Module):
    """x + s_l ⊙ relu(x A B + b) + t_l; A (D, r), B (r, D), b (D); s, t (L, D), a row for each module.

    B, b and t start at 0, so that the block starts as the identity. There every unit sits at the kink of the relu:
    it is written as a clamp, whose gradient at 0 is 1, for `torch.relu` would pass none and B would stay 0 for ever.
    """

    def __init__(self, width: int, rank: int, modules: int, generator: torch.Generator):
        super().__init__()
        self.A = nn.Parameter(torch.randn(width, rank, generator=generator))
        self.B = nn.Parameter(torch.zeros(rank, width))
        self.b = nn.Parameter(torch.zeros(width))
        self.s = nn.Parameter(torch.ones(modules, width))
        self.t = nn.Parameter(torch.zeros(modules, width))

    def forward(self, x: Tensor, index: int) -> Tensor:
        return x + self.s[index] * (x @ self.A @ self.B + self.b).clamp(min=0) + self.t[index]


class HyperNet(nn.Module):
    """Two blocks for each module shape, shared by the modules of that shape; one normaliser for each module.

    `log_eta`, `lam` (L,): ln η_l and λ_l. η is learned through its logarithm, which keeps it positive and
    lets one learning rate serve every scale. With `directions`, K₀ (directions, D_h) of each module is part of its
    state too, zero until it is given.
    """

    def __init__(
        self,
        modules: Sequence[EditModule],
        rank: int = 256,
        eta: float = 1e-4,
        seed: int = 0,
        lam: float = 0.0,
        directions: int = 0,
    ):
        super().__init__()
        self.modules_edited = tuple(modules)
        shapes: dict[str, int] = {}
        self.places: list[tuple[str, int]] = []
        for module in modules:
            shape = f"{module.d_h}x{module.d_g}"
            self.places.append((shape, shapes.get(shape, 0)))
            shapes[shape] = shapes.get(shape, 0) + 1
        generator = torch.Generator().manual_seed(seed)  # its own: another thread's LoRA draws from the common one
        self.blocks = nn.ModuleDict(
            {
                shape: nn.ModuleList(Block(sum(map(int, shape.split("x"))), rank, count, generator) for _ in range(2))
                for shape, count in shapes.items()
            }
        )
        self.normalisers = nn.ModuleList(Normaliser(module.d_h + module.d_g) for module in modules)
        self.log_eta = nn.Parameter(torch.full((len(modules),), eta).log())
        self.lam = nn.Parameter(torch.full((len(modules),), lam))
        self.directions = directions
        for index, module in enumerate(modules if directions else ()):
            self.register_buffer(f"old_keys_{index}", torch.zeros(directions, module.d_h))

    @property
    def old_keys(self) -> list[Tensor]:
        """K₀ of every module, as `engine.old_keys` has it; empty where there are none."""
        return [self.get_buffer(f"old_keys_{index}") for index in range(len(self.modules_edited) if self.directions else 0)]

    def eta(self, index: int) -> Tensor:
        """η_l, the step size of module `index`."""
        return self.log_eta[index].exp()

    def forward(self, index: int, keys: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor]:
        """H (T, D_h), ∇G (T, D_g) → H̃ (T, D_h), ∇G̃ (T, D_g), all float32."""
        shape, place = self.places[index]
        x = self.normalisers[index](torch.cat((keys, gradients), dim=1))
        for block in self.blocks[shape]:
            x = block(x, place)
        return x.split((keys.shape[1], gradients.shape[1]), dim=1)

    def scaled_gradient(self, index: int, keys: Tensor, gradients: Tensor, coefficient: bool = True) -> Tensor:
        """G = c ⊙ ∇G̃ with c = −η rowsum(H ⊙ H̃) (Eqs. 1, 2), (T, D_g); without the coefficient c = −η."""
        projected_keys, projected_gradients = self(index, keys, gradients)
        eta = self.eta(index)
        if not coefficient:
            return -eta * projected_gradients
        return -eta * (keys * projected_keys).sum(1, keepdim=True) * projected_gradients

    def summands(
        self, index: int, keys: Tensor, gradients: Tensor, coefficient: bool = True, least_squares: bool = True
    ) -> tuple[Tensor, Tensor]:
        """The rows (T, D_h), (T, D_g) whose outer products an edit adds up: H and G for the least-squares methods.

        Without least squares, for MEND: H̃ and −η ∇G̃.
        """
        if least_squares:
            return keys, self.scaled_gradient(index, keys, gradients, coefficient)
        projected_keys, projected_gradients = self(index, keys, gradients)
        return projected_keys, -self.eta(index) * projected_gradients

    def named_rows(self, index: int, keys: Tensor, gradients: Tensor, coefficient: bool = True) -> dict[str, Tensor]:
        """H̃, ∇G̃ and the scaled gradient G of Eq. 2 for these rows, by their names in a record."""
        projected_keys, projected_gradients = self(index, keys, gradients)
        scaled = self.scaled_gradient(index, keys, gradients, coefficient)
        return {"H_tilde": projected_keys, "grad_tilde": projected_gradients, "G_before": scaled}
