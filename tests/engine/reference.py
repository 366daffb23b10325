"""Eqs. 1–7 read literally and slowly: whole matrices over all rows, loops over modules, float64, autograd.

Written from the method's text, not from the engine. Of the engine it knows the names of the hypernetwork's
parameters, and nothing else.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

READINGS = ("scaled", "projected", "per_token", "off")


@dataclass(frozen=True)
class Equations:
    """Which equations hold: the reading of Eq. 4 ("off" is the ablation "no weights projection") and the others.

    Without `least_squares` it is MEND's sum, which the other switches do not concern.
    """

    reading: str = "scaled"
    coefficient: bool = True
    regularisation: bool = True
    gradient_projection: bool = True
    least_squares: bool = True


@dataclass(frozen=True)
class Parameters:
    """The hypernetwork's tensors by name, float64, those to be learned with a gradient; `seen`: the normaliser's rows.

    shapes[l] is (D_h, D_g) of module l. seen[l] (T', D_h + D_g) are all rows [H, ∇G] met in training. old_keys[l]
    (r, D_h), where there are any, stand in M_l too.
    """

    tensors: dict[str, Tensor]
    shapes: list[tuple[int, int]]
    seen: list[Tensor]
    old_keys: tuple[Tensor, ...] = ()

    def all_keys(self, l: int, H: Tensor) -> Tensor:
        """The rows whose HᵀH is in M_l."""
        return torch.cat([H, self.old_keys[l]]) if self.old_keys else H

    def place(self, l: int) -> int:
        """Which module of its shape module l is: the blocks' s and t have a row for each of them."""
        return self.shapes[:l].count(self.shapes[l])


def hypernetwork(p: Parameters, l: int, H: Tensor, dG: Tensor) -> tuple[Tensor, Tensor]:
    """[H, ∇G] normalised, two residual blocks, split: (T, D_h), (T, D_g)."""
    D_h, D_g = p.shapes[l]
    mean, std = p.seen[l].mean(dim=0), p.seen[l].std(dim=0)
    x = (torch.cat([H, dG], dim=1) - mean) / std
    for block in range(2):
        A, B, b, s, t = (p.tensors[f"blocks.{D_h}x{D_g}.{block}.{name}"] for name in "ABbst")
        x = x + s[p.place(l)] * (x @ A @ B + b).clamp(min=0) + t[p.place(l)]
    return x[:, :D_h], x[:, D_h:]


def scaled_gradient(p: Parameters, l: int, H: Tensor, dG: Tensor, equations: Equations) -> Tensor:
    """Eqs. 1 and 2: G = c ⊙ ∇G̃ with c_i = −η Σ_j H_ij H̃_ij; without the coefficient c_i = −η."""
    H_projected, dG_projected = hypernetwork(p, l, H, dG)
    eta = torch.exp(p.tensors["log_eta"][l])
    rows = []
    for i in range(len(H)):
        c = -eta * (H[i] * H_projected[i]).sum() if equations.coefficient else -eta
        rows.append(c * dG_projected[i])
    return torch.stack(rows)


def project(G: Tensor, S: Tensor, reading: str) -> Tensor:
    """Eq. 4 with a constant S: one inner product over the batch, or one for each row."""
    S = S.detach()
    if reading == "per_token":
        rows = [g - (g @ s) / (s @ s) * s if (s @ s) > 0 else g for g, s in zip(G, S)]
        return torch.stack(rows)
    square = (S * S).sum()
    return G - (G * S).sum() / square * S if square > 0 else G


def gradients_after_eq4(p: Parameters, H: list[Tensor], dG: list[Tensor], equations: Equations) -> list[Tensor]:
    """G_l of every module after Eq. 4, shallow to deep."""
    before = [scaled_gradient(p, l, H[l], dG[l], equations) for l in range(len(H))]
    after: list[Tensor] = []
    for l, G in enumerate(before):
        if l == 0 or equations.reading == "off" or p.shapes[l][1] != p.shapes[l - 1][1]:
            after.append(G)
            continue
        S = after[l - 1] if equations.reading == "projected" else before[l - 1]
        after.append(project(G, S, equations.reading))
    return after


def solve(H: Tensor, lam: Tensor, right: Tensor, equations: Equations) -> Tensor:
    """M⁻¹ right with M = HᵀH + e^λ I (Eq. 3); without regularisation the pseudo-inverse of HᵀH = H⁺H⁺ᵀ."""
    if equations.regularisation:
        return torch.linalg.solve(H.T @ H + torch.exp(lam) * torch.eye(H.shape[1], dtype=H.dtype), right)
    inverse = torch.linalg.pinv(H)  # from H's own singular values, not from those of HᵀH
    return inverse @ (inverse.T @ right)


def weight_shifts(p: Parameters, H: list[Tensor], dG: list[Tensor], equations: Equations) -> list[Tensor]:
    """Eq. 5: Δθ_l = M_l⁻¹ H_lᵀ G_l; without least squares MEND's Δθ_l = Σ_t −η H̃_tᵀ ∇G̃_t."""
    if not equations.least_squares:
        return [mend_shift(p, l, H[l], dG[l]) for l in range(len(H))]
    G = gradients_after_eq4(p, H, dG, equations)
    return [solve(p.all_keys(l, H[l]), p.tensors["lam"][l], H[l].T @ G[l], equations) for l in range(len(H))]


def mend_shift(p: Parameters, l: int, H: Tensor, dG: Tensor) -> Tensor:
    """Δθ = Σ_t −η H̃_tᵀ ∇G̃_t, one outer product after the other."""
    H_projected, dG_projected = hypernetwork(p, l, H, dG)
    shift = torch.zeros(p.shapes[l], dtype=H.dtype)
    for h, g in zip(H_projected, dG_projected):
        shift = shift - torch.exp(p.tensors["log_eta"][l]) * torch.outer(h, g)
    return shift


def mend_loss_and_gradients(
    p: Parameters, H: list[Tensor], dG: list[Tensor], g_theta: list[Tensor]
) -> tuple[float, dict[str, Tensor]]:
    """Σ_l ⟨g_θ,l, Δθ_l⟩ of MEND, and its gradient for every learned tensor; λ has none."""
    shifts = [mend_shift(p, l, H[l], dG[l]) for l in range(len(H))]
    loss = sum((guide * shift).sum() for guide, shift in zip(g_theta, shifts))
    names = [name for name, tensor in p.tensors.items() if tensor.requires_grad]
    found = torch.autograd.grad(loss, [p.tensors[name] for name in names], allow_unused=True, materialize_grads=True)
    return loss.item(), dict(zip(names, found))


def projected_gradients(p: Parameters, H: list[Tensor], g_theta: list[Tensor], equations: Equations) -> list[Tensor]:
    """Eq. 6: P_l = H_l M_l⁻¹ g_θ,l, a constant; without gradient projection H_l g_θ,l, for ⟨g_θ, HᵀG⟩ = ⟨H g_θ, G⟩."""
    if not equations.gradient_projection:
        return [keys @ guide for keys, guide in zip(H, g_theta)]
    lam = p.tensors["lam"].detach()
    return [H[l] @ solve(p.all_keys(l, H[l]), lam[l], g_theta[l], equations) for l in range(len(H))]


def hypernetwork_loss(P: list[Tensor], G: list[Tensor]) -> Tensor:
    """Eq. 7: L = Σ_l Σ_ij P_l ⊙ G_l."""
    total = torch.zeros((), dtype=torch.float64)
    for P_l, G_l in zip(P, G):
        for i in range(len(G_l)):
            total = total + (P_l[i] * G_l[i]).sum()
    return total


def loss_and_gradients(
    p: Parameters, H: list[Tensor], dG: list[Tensor], g_theta: list[Tensor], equations: Equations
) -> tuple[float, dict[str, Tensor]]:
    """L_AGRADE, and its gradient for every learned tensor; λ's is −e^λ ⟨M⁻¹g_θ, Δθ⟩, or 0 where M is left out."""
    P = projected_gradients(p, H, g_theta, equations)
    loss = hypernetwork_loss(P, gradients_after_eq4(p, H, dG, equations))
    names = [name for name, tensor in p.tensors.items() if tensor.requires_grad and name != "lam"]
    found = torch.autograd.grad(loss, [p.tensors[name] for name in names])
    gradients = dict(zip(names, found))
    lam = p.tensors["lam"].detach()
    gradients["lam"] = torch.zeros_like(lam)
    if equations.regularisation and equations.gradient_projection:
        shifts = weight_shifts(p, H, dG, equations)
        for l in range(len(H)):
            direction = solve(p.all_keys(l, H[l]), lam[l], g_theta[l], equations)
            gradients["lam"][l] = -torch.exp(lam[l]) * (direction * shifts[l].detach()).sum()
    return loss.item(), gradients
