"""The engine's streamed sums, solve and training gradient agree with a literal reading of Eqs. 1–7.

1e-4 relative, engine in float32, reference in float64: every reading of Eq. 4 with every ablation.
"""

from itertools import product

import pytest
import torch
from torch import Tensor

from engine.hypernet import HyperNet
from engine.model import EditModule
from engine.statistics import EditSums, factorise, remove_rowwise
from engine.training import MEND, Reading, Rows, hypernet_gradient, solve_rows
from tests.engine import reference
from tests.engine.reference import Equations

TOLERANCE = 1e-4
ROWS = 40
EQUAL = ((12, 8),) * 4
DIFFERING = ((12, 8), (12, 8), (10, 6), (10, 6), (14, 8), (12, 8))
WIDTHS = {"equal": EQUAL, "differing": DIFFERING}
SWITCHES = [
    Equations(reading, *switches) for reading in reference.READINGS for switches in product((True, False), repeat=3)
]


class Case:
    """A random hypernetwork, random rows H and ∇G of a batch, and a random g_θ, for both sides."""

    def __init__(self, shapes: tuple[tuple[int, int], ...], rows: int = ROWS, seed: int = 0, directions: int = 0):
        self.shapes = list(shapes)
        self.random = torch.Generator().manual_seed(seed)
        modules = [EditModule(f"m.{l}", l, *shape, transposed=True) for l, shape in enumerate(shapes)]
        self.hypernet = HyperNet(modules, rank=4, eta=3e-2, seed=seed, directions=directions)
        for parameter in self.hypernet.parameters():
            parameter.data += self.normal(parameter.shape, 0.3)
        seen = [self.normal((30, d_h + d_g), 2.0) + self.normal((d_h + d_g,), 1.0) for d_h, d_g in shapes]
        for normaliser, features in zip(self.hypernet.normalisers, seen):
            for part in features.split([7, 1, 22]):
                normaliser.update(part)
        # Successive modules' gradients are alike, as in a residual stream: Eq. 4 has something to remove.
        common = self.normal((rows, max(d_g for _, d_g in shapes)), 1.0)
        self.keys = [self.normal((rows, d_h), 1.0) for d_h, _ in shapes]
        self.gradients = [common[:, :d_g] + self.normal((rows, d_g), 0.7) for _, d_g in shapes]
        self.guides = [self.normal(shape, 1.0) for shape in shapes]
        for keys in self.hypernet.old_keys:
            keys += self.normal(keys.shape, 2.0)
        learned = {name for name, _ in self.hypernet.named_parameters()}
        self.parameters = reference.Parameters(
            {
                name: tensor.detach().double().requires_grad_(name in learned)
                for name, tensor in self.hypernet.state_dict().items()
            },
            self.shapes,
            [features.double() for features in seen],
            tuple(keys.double() for keys in self.hypernet.old_keys),
        )

    def normal(self, shape, scale: float) -> Tensor:
        return scale * torch.randn(shape, generator=self.random)

    @property
    def exact(self) -> tuple[list[Tensor], list[Tensor]]:
        """H and ∇G for the reference."""
        return [keys.double() for keys in self.keys], [gradients.double() for gradients in self.gradients]

    def scaled(self, coefficient: bool) -> list[Tensor]:
        with torch.no_grad():
            return [
                self.hypernet.scaled_gradient(l, self.keys[l], self.gradients[l], coefficient)
                for l in range(len(self.shapes))
            ]


def assert_near(found: Tensor, wanted: Tensor, what: str) -> None:
    error = torch.linalg.vector_norm(found.double() - wanted.detach())
    scale = torch.linalg.vector_norm(wanted.detach())
    assert error <= TOLERANCE * scale, f"{what}: off by {float(error / scale):.2e}"


def name(equations: Equations) -> str:
    switches = ("no c", equations.coefficient), ("no λ", equations.regularisation)
    switches += (("no P", equations.gradient_projection),)
    return " ".join([equations.reading, *(text for text, on in switches if not on)])


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("directions", [0, 2], ids=["", "old keys"])
@pytest.mark.parametrize("rows", [ROWS, 9, 5], ids=["many rows", "fewer rows than D_h", "few rows"])
@pytest.mark.parametrize("equations", [e for e in SWITCHES if e.gradient_projection], ids=name)
def test_streamed_shift_is_the_literal_one(
    equations: Equations, rows: int, directions: int, widths: str, monkeypatch
):
    monkeypatch.setattr("engine.statistics.FLUSH_ROWS", 16)
    case = Case(WIDTHS[widths], rows, directions=directions)
    sums = EditSums(case.shapes, equations.reading, old_keys=case.hypernet.old_keys)
    scaled = case.scaled(equations.coefficient)
    order = torch.randperm(rows, generator=case.random)
    first = 0
    while first < rows:
        last = first + int(torch.randint(1, 12, (), generator=case.random))
        part = order[first:last]
        sums.add([keys[part] for keys in case.keys], [gradient[part] for gradient in scaled])
        first = last
    found = sums.solve(case.hypernet.lam.detach(), equations.regularisation).shifts
    wanted = reference.weight_shifts(case.parameters, *case.exact, equations)
    for l, (d_h, d_g) in enumerate(case.shapes):
        assert found[l].shape == (d_h, d_g)
        assert_near(found[l], wanted[l], f"Δθ of module {l + 1}")


def test_few_rows_are_solved_by_factors_of_the_old_keys_as_without_them():
    case = Case(EQUAL, 5, directions=2)
    lam, old = case.hypernet.lam.detach(), case.hypernet.old_keys
    factors = [factorise(keys @ keys.T, own, True, "K₀") for keys, own in zip(old, lam)]
    found = []
    for known in ((), factors, [2 * factor for factor in factors]):
        sums = EditSums(case.shapes, "scaled", old_keys=old, old_factors=known)
        sums.add(case.keys, case.scaled(True))
        found.append(sums.solve(lam).shifts)
        keys, gradients = sums.few_rows(1, torch.tensor([0.0, 1.0, 0.0]))
        assert torch.equal(keys[5:], old[1]) and not gradients[5:].any()
    plain, known, wrong = found
    for l in range(len(plain)):
        assert torch.equal(plain[l], known[l]) and not torch.allclose(plain[l], wrong[l])


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("directions", [0, 2], ids=["", "old keys"])
@pytest.mark.parametrize("equations", SWITCHES, ids=name)
def test_training_gradient_is_the_literal_one(equations: Equations, directions: int, widths: str, monkeypatch):
    monkeypatch.setattr("engine.training.ROWS_AT_ONCE", 17)
    case = Case(WIDTHS[widths], directions=directions)
    reading = Reading(
        projection=equations.reading,
        coefficient=equations.coefficient,
        regularisation=equations.regularisation,
        gradient_projection=equations.gradient_projection,
    )
    rows = Rows(case.keys, case.gradients, case.keys, case.scaled(equations.coefficient))
    sums, solution = solve_rows(case.hypernet, rows, reading)
    loss = hypernet_gradient(case.hypernet, rows, sums, solution, case.guides, reading)
    guides = [guide.double() for guide in case.guides]
    wanted_loss, wanted = reference.loss_and_gradients(case.parameters, *case.exact, guides, equations)
    # A sum of terms of both signs: its error is relative to their size, not to what is left of them.
    P = reference.projected_gradients(case.parameters, case.exact[0], guides, equations)
    G = reference.gradients_after_eq4(case.parameters, *case.exact, equations)
    terms = sum((P_l.norm() * G_l.norm()).item() for P_l, G_l in zip(P, G))
    assert loss == pytest.approx(wanted_loss, abs=TOLERANCE * terms)
    for name, parameter in case.hypernet.named_parameters():
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert_near(found, wanted[name], name)


@pytest.mark.parametrize("widths", WIDTHS)
def test_mends_shift_is_the_literal_sum(widths: str, monkeypatch):
    monkeypatch.setattr("engine.training.ROWS_AT_ONCE", 17)
    monkeypatch.setattr("engine.statistics.FLUSH_ROWS", 16)
    case = Case(WIDTHS[widths])
    found = mend_solution(case)[2].shifts
    wanted = reference.weight_shifts(case.parameters, *case.exact, Equations(least_squares=False))
    for l, shift in enumerate(wanted):
        assert_near(found[l], shift, f"Δθ of module {l + 1}")


@pytest.mark.parametrize("widths", WIDTHS)
def test_mends_training_gradient_is_the_literal_one(widths: str, monkeypatch):
    monkeypatch.setattr("engine.training.ROWS_AT_ONCE", 17)
    case = Case(WIDTHS[widths])
    rows, sums, solution = mend_solution(case)
    loss = hypernet_gradient(case.hypernet, rows, sums, solution, case.guides, MEND)
    guides = [guide.double() for guide in case.guides]
    wanted_loss, wanted = reference.mend_loss_and_gradients(case.parameters, *case.exact, guides)
    terms = sum(guide.norm() * shift.norm() for guide, shift in zip(guides, solution.shifts))
    assert loss == pytest.approx(wanted_loss, abs=TOLERANCE * float(terms))
    for name, parameter in case.hypernet.named_parameters():
        if name == "lam":
            assert parameter.grad is None and not wanted[name].any()
        else:
            assert_near(parameter.grad, wanted[name], name)


def mend_solution(case: Case):
    """MEND's rows, sums and Δθ for the rows of a case."""
    with torch.no_grad():
        pairs = [
            case.hypernet.summands(l, case.keys[l], case.gradients[l], least_squares=False)
            for l in range(len(case.shapes))
        ]
    rows = Rows(case.keys, case.gradients, *map(list, zip(*pairs)))
    return rows, *solve_rows(case.hypernet, rows, MEND)


def test_reference_gradient_of_lambda_is_that_of_the_guided_shift():
    """−e^λ ⟨M⁻¹g_θ, Δθ⟩, as the method's text has it, is d⟨g_θ, Δθ⟩/dλ."""
    case, equations = Case(EQUAL), Equations()
    guides = [guide.double() for guide in case.guides]
    shifts = reference.weight_shifts(case.parameters, *case.exact, equations)
    guided = sum((guide * shift).sum() for guide, shift in zip(guides, shifts))
    (wanted,) = torch.autograd.grad(guided, [case.parameters.tensors["lam"]])
    _, found = reference.loss_and_gradients(case.parameters, *case.exact, guides, equations)
    assert_near(found["lam"], wanted, "λ")


def test_eq4_leaves_nothing_along_the_previous_gradient():
    case = Case(EQUAL)
    sums = EditSums(case.shapes, "projected")
    scaled = case.scaled(True)
    sums.add(case.keys, scaled)
    mixture = sums.solve(case.hypernet.lam.detach()).mixture.float()
    projected = [sum(mixture[l, k] * scaled[k] for k in range(4)) for l in range(4)]
    for l in range(1, 4):
        inner = (projected[l] * projected[l - 1]).sum() / projected[l].norm() / projected[l - 1].norm()
        assert abs(inner) < 1e-5
        assert projected[l].norm() < scaled[l].norm()


@pytest.mark.parametrize("reading", ["scaled", "projected", "per_token"])
def test_skipped_projection_is_said(reading: str):
    case = Case(((12, 8), (12, 6), (12, 6)))
    scaled = case.scaled(True)
    scaled[1].zero_()
    sums = EditSums(case.shapes, reading)
    sums.add(case.keys, scaled)
    solution = sums.solve(case.hypernet.lam.detach())
    assert "Module 2: Eq. 4 skipped, its output width differs" in solution.notes[0]
    assert "Module 3: Eq. 4 skipped, the previous module's gradient is zero" in solution.notes[1]
    assert all(torch.isfinite(shift).all() for shift in solution.shifts)
    assert torch.count_nonzero(solution.shifts[1]) == 0 < torch.count_nonzero(solution.shifts[2])


def test_rowwise_projection_keeps_rows_without_a_previous_gradient():
    gradient, previous = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[0.0, 0.0], [0.0, 2.0]])
    assert torch.equal(remove_rowwise(gradient, previous), torch.tensor([[1.0, 2.0], [3.0, 0.0]]))


def test_rowwise_projection_survives_tiny_gradients():
    gradient = torch.tensor([[3e-20, 4e-20]])
    removed = remove_rowwise(gradient, gradient)
    assert torch.linalg.vector_norm(removed) <= 1e-4 * torch.linalg.vector_norm(gradient)
