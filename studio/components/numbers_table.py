"""The numbers beside the picture: what each module's full matrices are to each other, and whether Eq. 4 helped."""

from collections.abc import Sequence

from engine.edit_record import RecordCard
from engine.geometry import ModuleNumbers
from studio.components.markup import text

CSS = """
td.up { color: var(--good); } td.down { color: var(--bad); }
.numbers td, .numbers th { white-space: nowrap; }
.claims { margin: 0 0 8px; }
"""
HEADS = (
    ("Layer", "", "the edited module's layer"),
    ("cos(HᵀG, Δθ)", "number", "cosine between HᵀG and Δθ, before Eq. 4 → after"),
    ("‖HᵀG − Δθ‖ / ‖HᵀG‖", "number", "relative distance, before Eq. 4 → after"),
    ("HᵀG to M", "number", "kernel alignment ⟨M, AAᵀ⟩ / ‖M‖‖AAᵀ‖ with A = HᵀG, before Eq. 4 → after"),
    ("cos(Gₗ, Gₗ₋₁)", "number", "what Eq. 4 takes away: cosine to the previous module's gradient, before it"),
    ("‖G‖ kept", "number", "‖Gₗ‖ after Eq. 4 / before"),
    ("cond(M)", "number", "largest / smallest eigenvalue of M"),
    ("eff. rank of M", "number", "(Σλ)² / Σλ² over the eigenvalues of M"),
    ("‖Δθ‖ / ‖W‖", "number", "size of the weight shift"),
    ("σ of Δθ", "", "its largest singular values; all that were found on hover"),
)
NEAR_ONE = 1e-3
MOST_PLACES = 8
COLOURS = "Green: Eq. 4 brought them closer. Red: it took them further apart."


def numbers_html(cards: Sequence[tuple[str, RecordCard]]) -> str:
    """One table a run: (its name, its card). "" where no run has numbers."""
    return "".join(_table(name, card) for name, card in cards if card.numbers)


def claims(numbers: Sequence[ModuleNumbers]) -> list[str]:
    """The paper's claim, that Eq. 4 brings HᵀG closer to Δθ and to M, counted over the modules that it changes."""
    known = [one for one in numbers if one.cosine[0] is not None]
    changed = [one for one in known if any(a != b for a, b in (one.cosine, one.distance, one.alignment))]
    if not changed:
        return []
    closer = sum(one.cosine[1] > one.cosine[0] for one in changed)
    nearer = sum(one.distance[1] < one.distance[0] for one in changed)
    aligned = sum(one.alignment[1] > one.alignment[0] for one in changed)
    of = f"of {len(changed)} module{'s' * (len(changed) > 1)}"
    return [
        f"Eq. 4 brought HᵀG closer to Δθ in {closer} {of} by cosine, in {nearer} by relative distance, "
        f"and closer to M in {aligned}."
    ]


def pair_text(values: tuple[float | None, float], places: int) -> str:
    """“before → after”, with more places where they would look alike; the one figure where nothing is seen to change.

    Figures so near to 1 that they would look alike are told by what is missing: 1−2.31e-07.
    """
    known = [value for value in dict.fromkeys(values) if value is not None]
    near = len(known) > 1 and all(abs(1 - value) < NEAR_ONE for value in known)
    if near:
        return " → ".join(f"1{'−' if value <= 1 else '+'}{abs(1 - value):.2e}" for value in known)
    for wide in range(places, MOST_PLACES):
        texts = dict.fromkeys(f"{round(value, wide) + 0.0:.{wide}f}" for value in known)  # + 0.0: no "-0.0000"
        if len(texts) == len(known):
            return " → ".join(texts)
    return f"{round(known[-1], places) + 0.0:.{places}f}"


def _table(name: str, card: RecordCard) -> str:
    heads = "".join(
        f'<th class="{kind}" scope="col" title="{text(why)}">{text(head)}</th>' for head, kind, why in HEADS
    )
    layers = {module.name: module.layer for module in card.modules}
    rows = "".join(_row(layers[one.module], one) for one in card.numbers)
    lines = "".join(f'<p class="claims">{text(line)}</p>' for line in claims(card.numbers))
    return (
        f'<h4>{text(name)}</h4>{lines}<div class="wide"><table class="numbers"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{f'<p class=quiet>{COLOURS}</p>' if lines else ''}"
    )


def _row(layer: int, one: ModuleNumbers) -> str:
    values = ", ".join(f"{value:.3g}" for value in one.singular_values)
    first = ", ".join(f"{value:.3g}" for value in one.singular_values[:3])
    cells = (
        _pair(one.cosine, better=1),
        _pair(one.distance, better=-1),
        _pair(one.alignment, better=1),
        f"<td class='number'>{_figure(one.cosine_to_previous)}</td>",
        f"<td class='number'>{_figure(one.kept)}</td>",
        f"<td class='number'>{one.condition_number:.3g}</td>",
        f"<td class='number'>{one.effective_rank:.1f}</td>",
        f"<td class='number'>{one.relative_norm:.3g}</td>",
        f'<td title="{values}">{first}{" …" if len(one.singular_values) > 3 else ""}</td>',
    )
    return f'<tr><th scope="row">{layer}</th>{"".join(cells)}</tr>'


def _pair(values: tuple[float | None, float], better: int) -> str:
    before, after = values
    told = pair_text(values, 4)
    kind = "" if "→" not in told else "up" if (after - before) * better > 0 else "down"
    return f"<td class='number {kind}'>{told}</td>"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
