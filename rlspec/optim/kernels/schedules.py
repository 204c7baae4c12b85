"""Coefficient schedules of Newton-Schulz iterations: functions of the spectrum, one quintic per step.

A step `X <- a X + (b A + c A A) X`, `A = X X^T`, acts on every singular value alone: `x -> a x + b x^3 + c x^5`.
`transfer` evaluates a schedule on singular values directly. A band is what singular values in [.01, 1] become in as
many steps as were published.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Coefficients = tuple[float, float, float]
Schedule = tuple[Coefficients, ...]

KELLER: Coefficients = (3.4445, -4.7750, 2.0315)
"""Keller Jordan's quintic, also of torch.optim.Muon: five steps map [0.01, 1] into [0.68, 1.14]."""

PROMOTION: Coefficients = (15 / 8, -10 / 8, 3 / 8)
"""Pion's f_p, the classic quintic: f(1) = 1, f'(1) = 0, monotone on [0, 1], the largest such slope at 0."""

SUPPRESSION: Coefficients = (0.0, 5 / 2, -3 / 2)
"""Pion's f_s: f(1) = 1, f'(1) = f'(0) = 0; repelling fixed point sqrt(2/3), below it everything decays to 0."""

_POLAR_EXPRESS: Schedule = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
)
_NANOGPT_POLAR_EXPRESS: Schedule = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
_YOU: Schedule = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
_CANS: Schedule = (
    (8.4703, -25.1081, 18.6293),
    (4.1828, -3.1087, 0.5806),
    (3.9619, -2.9541, 0.5630),
    (3.2866, -2.4647, 0.5074),
    (2.2737, -1.6447, 0.4162),
)
_TURBO_MUON: Schedule = (
    (4.0098, -7.0585, 2.4635),
    (3.4585, -5.5479, 2.5959),
    (2.7573, -3.2939, 1.4254),
    (2.7215, -3.0494, 1.3169),
)
_STABILISE: Coefficients = (2.0, -1.5, 0.5)


def _first(schedule: Schedule, steps: int) -> Schedule:
    """The first steps of a published schedule; beyond its end `PROMOTION`, of which 1 is the fixed point."""
    return (schedule + (PROMOTION,) * steps)[:steps]


def _damped(coefficients: Coefficients, safety: float) -> Coefficients:
    """The step of `x / safety`."""
    a, b, c = coefficients
    return a / safety, b / safety**3, c / safety**5


def keller(steps: int = 5) -> Schedule:
    """Repeat Keller Jordan's coefficients (https://kellerjordan.github.io/posts/muon/). Band [.68, 1.14]."""
    return (KELLER,) * steps


def quintic(steps: int = 5) -> Schedule:
    """Repeat the classic quintic: monotone, never above 1, and slow; band [.23, 1], in eight steps [.94, 1]."""
    return (PROMOTION,) * steps


def polar_express(steps: int = 5, safety: float = 1.05) -> Schedule:
    """Optimal composition of quintics (Polar Express, arXiv 2505.16932), ended by its limit, `PROMOTION`.

    Band [.87, 1.13], as published [.88, 1.13].

    Args:
        steps: number of iterations.
        safety: the argument of all but the last step is divided by it, so that rounding in bf16 cannot push a singular
            value beyond the interval on which the polynomial was fitted; 1 gives the coefficients as published.
    """
    raw = _first(_POLAR_EXPRESS, steps)
    return tuple(_damped(step, safety) for step in raw[:-1]) + raw[-1:]


def nanogpt_polar_express(steps: int = 5) -> Schedule:
    """Polar Express as modded-nanogpt has it: safety 1.02 is in the numbers, for five steps. Band [.86, 1.15]."""
    return _first(_NANOGPT_POLAR_EXPRESS, steps)


def you(steps: int = 5) -> Schedule:
    """You Jiacheng's five steps, also called quintic. Band [.97, 1.04]; at .001 it reaches .47."""
    return _first(_YOU, steps)


def cans(steps: int = 5) -> Schedule:
    """Chebyshev-optimal steps (CANS, arXiv 2506.10935), for five. Band [.88, 1.12]."""
    return _first(_CANS, steps)


def turbo_muon(steps: int = 4, safety: float = 1.18) -> Schedule:
    """The four steps of Turbo-Muon, to be used with `normalise="aol"`. Band [.86, 1.09].

    As published (safety 1) the first step has a zero at .884 and turns singular values above it around: the update of
    such a direction, which a block of rank one always has, then climbs. AOL rarely leaves values that large, but here
    the argument of the first step is divided by `safety`, which keeps [0, 1] below .85.
    """
    raw = _first(_TURBO_MUON, steps)
    return tuple(_damped(step, safety) for step in raw[:1]) + raw[1:]


def deepseek_v4(steps: int = 10) -> Schedule:
    """Keller Jordan's coefficients, and (2, -1.5, .5), which draws to 1, for the last two steps.

    DeepSeek-V4 takes ten steps, eight and two: set `ns_steps=10` for those, band [.999, 1.001]. With five they are
    three and two, band [.97, 1.01].
    """
    return (KELLER,) * max(steps - 2, 0) + (_STABILISE,) * min(steps, 2)


def high_pass_schedule(promotion_steps: float, steps: int = 5) -> Schedule:
    """Pion: `promotion_steps` (k_p) times f_p, then f_s for the rest.

    A fractional k_p takes one step in between, p_a with a = 15/8 of the fraction from the monotone family
    `p_a(x) = a x + (5/2 - 2a) x^3 + (a - 3/2) x^5`, for which p_0 = f_s and p_{15/8} = f_p, so that the cut-off is a
    continuous, monotone function of k_p.
    """
    whole = int(promotion_steps)
    a = PROMOTION[0] * (promotion_steps - whole)
    between = ((a, 2.5 - 2 * a, a - 1.5),) if a > 0 else ()
    return (PROMOTION,) * whole + between + (SUPPRESSION,) * (steps - whole - len(between))


LOW_PASS: Schedule = (
    (2.0281, -2.1274, 0.9279),
    (1.5858, 0.3468, -0.9617),
    (2.3262, -0.913, -0.693),
    (2.2208, -1.8131, 0.5529),
    (2.3212, -2.2102, 0.8865),
)
"""Below tau = 1/2 to 1, above to 0: our fit of the control LPMuon (the paper does not print its 15 numbers).

By `tests/benchmarks/fit_low_pass.py`: on [.05, .45] and [.55, 1] the largest error is .077, the mean .009.
"""

SCHEDULES: dict[str, Callable[[int], Schedule]] = {
    "keller": keller,
    "polar_express": polar_express,
    "nanogpt_polar_express": nanogpt_polar_express,
    "you": you,
    "cans": cans,
    "deepseek_v4": deepseek_v4,
    "turbo_muon": turbo_muon,
    "quintic": quintic,
}
"""Name -> function(steps): schedules that lift singular values to 1."""


def transfer(singular_values: Tensor, schedule: Schedule) -> Tensor:
    """Evaluate a schedule on normalised singular values, elementwise; the exact answer an iteration approximates."""
    x = singular_values
    for a, b, c in schedule:
        x = a * x + b * x**3 + c * x**5
    return x
