"""Error bars of a difference of means: how far it may be from the direction that endless prompts would give."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from resect.directions.baselines import Baseline
from resect.directions.samples import Samples, samples
from resect.errors import UserError

DRAWS = 1000
_TAILS = (0.025, 0.975)


@dataclass(frozen=True, eq=False)
class ErrorBars:
    """The error of r = mean(harmful - subtrahend) by layer, from resampled prompts.

    `norm` is |r|, which noise makes longer; `noise` the root-mean-square length of the error; `signal` the length without it,
    sqrt(|r|^2 - noise^2) or 0, with its 95 % interval. `angle_low`, `angle`, `angle_high` are the 2.5, 50 and 97.5 % points of the angle
    between r and the truth, `cone` is the angle that 95 % of draws stay within; all in degrees.
    """

    prompts: int
    norm: Float[Tensor, " layer"]
    noise: Float[Tensor, " layer"]
    sideways: Float[Tensor, " layer"]
    signal: Float[Tensor, " layer"]
    signal_low: Float[Tensor, " layer"]
    signal_high: Float[Tensor, " layer"]
    angle_low: Float[Tensor, " layer"]
    angle: Float[Tensor, " layer"]
    angle_high: Float[Tensor, " layer"]
    cone: Float[Tensor, " layer"]

    @property
    def signal_to_noise(self) -> Float[Tensor, " layer"]:
        """Signal by noise: 1 where half of |r|^2 is noise."""
        return self.signal / self.noise

    def prompts_needed(self, degrees: float) -> Float[Tensor, " layer"]:
        """Return how many harmful prompts (harmless ones in proportion) give that root-mean-square angle; infinite without a signal.

        tan^2(angle) = (sideways noise)^2 / signal^2, and noise^2 falls as 1 / prompts.

        Raises:
            UserError: for an angle outside (0, 90).
        """
        if not 0 < degrees < 90:
            raise UserError(f"The angle must lie between 0 and 90 degrees, got {degrees:g}; 10 is a usual one.")
        tangent = torch.tensor(degrees).double().deg2rad().tan()
        return torch.ceil(self.prompts * (self.sideways / (self.signal * tangent)).square())


def bootstrap(harmful: Float[Tensor, "prompt layer d_model"], baseline: Baseline, *, draws: int = DRAWS, seed: int = 0) -> ErrorBars:
    """Return the error bars of the mean difference; harmful prompts are resampled, harmless rows within their group, pairs together.

    The error e of a draw is its difference from r. Noise makes r longer than the truth, so draws around r itself would lie too near to it:
    they are taken around m, r shortened to the length `signal`, and the angle is that between m and m + e, the signal's interval that of
    |m + e|^2 - noise^2, turned about. Draws are spread by sqrt(n / (n - 1)), which makes their variance unbiased. Where rows vary in as
    many dimensions as there are prompts, interval and cone are too wide rather than too narrow.
    """
    data = samples(harmful, baseline)
    errors = _draws(data, draws, seed) - data.whole
    norm = data.norms_squared(data.whole[None]).sqrt()
    lengths = data.norms_squared(errors)
    parallel = data.products(errors, data.whole.expand_as(errors)) / norm.clamp_min(1e-150)
    side = (lengths - parallel.square()).clamp_min(0)
    noise = lengths.mean(1)
    power = norm[:, 0].square() - noise
    signal = power.clamp_min(0).sqrt()
    tails = _points(2 * signal[:, None] * parallel + lengths - noise[:, None], *_TAILS)
    angles = torch.rad2deg(torch.atan2(side.sqrt(), signal[:, None] + parallel))
    low, middle, high, cone = _points(angles, 0.025, 0.5, 0.975, 0.95)
    return ErrorBars(
        prompts=len(harmful),
        norm=norm[:, 0],
        noise=noise.sqrt(),
        sideways=side.mean(1).sqrt(),
        signal=signal,
        signal_low=(power - tails[1]).clamp_min(0).sqrt(),
        signal_high=(power - tails[0]).clamp_min(0).sqrt(),
        angle_low=low,
        angle=middle,
        angle_high=high,
        cone=cone,
    )


def component(
    harmful: Float[Tensor, "prompt layer d_model"],
    baseline: Baseline,
    reference: Float[Tensor, "layer d_model"],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> tuple[Float[Tensor, " layer"], Float[Tensor, " layer"], Float[Tensor, " layer"]]:
    """Return the length of r along a fixed reference direction (made from other prompts), and its 95 % interval: value, low, high."""
    data, used = samples(harmful, baseline), baseline.used
    unit = torch.nn.functional.normalize(reference.double(), dim=-1)
    seen = torch.einsum("pld,ld->lp", torch.cat([harmful, used.rows]).double(), unit)
    low, high = _points(seen @ _draws(data, draws, seed).T, *_TAILS)
    return seen @ data.whole, low, high


def split_half(
    harmful: Float[Tensor, "prompt layer d_model"], baseline: Baseline, *, draws: int = 200, seed: int = 0
) -> tuple[Float[Tensor, " layer"], Float[Tensor, " layer"], Float[Tensor, " layer"]]:
    """Return the mean cosine between the directions of two random halves of the prompts, and the 2.5 and 97.5 % points over the halvings.

    Harmless rows are halved within their group; a pair goes with its harmful prompt.
    """
    data = samples(harmful, baseline)
    generator = torch.Generator().manual_seed(seed)
    prompts = _halves(torch.zeros(len(harmful), dtype=torch.long), draws, generator)
    rows = _halves(data.groups, draws, generator)
    alone = torch.bincount(data.groups)[data.groups] == 1
    first = data.coefficients(prompts, torch.where(alone, 1.0, rows))
    second = data.coefficients(1 - prompts, torch.where(alone, 1.0, 1 - rows))
    lengths = data.norms_squared(first) * data.norms_squared(second)
    cosines = data.products(first, second) / lengths.clamp_min(1e-300).sqrt()
    low, high = _points(cosines, *_TAILS)
    return cosines.mean(1), low, high


def _points(values: Float[Tensor, "layer draw"], *levels: float) -> Float[Tensor, "level layer"]:
    """Return the points that a next draw lies below with these chances: the one of rank p (draws + 1), between neighbours linearly."""
    draws = values.shape[1]
    ranks = [min(max((level * (draws + 1) - 1) / (draws - 1), 0.0), 1.0) for level in levels]
    return torch.quantile(values, torch.tensor(ranks, dtype=values.dtype), dim=1)


def _draws(data: Samples, draws: int, seed: int) -> Float[Tensor, "draw sample"]:
    """Return coefficients of resampled directions."""
    generator = torch.Generator().manual_seed(seed)
    prompts = _resampled(torch.zeros(len(data.weights), dtype=torch.long), draws, generator)
    return data.coefficients(prompts, _resampled(data.groups, draws, generator))


def _resampled(groups: Int[Tensor, " n"], draws: int, generator: torch.Generator) -> Float[Tensor, "draw n"]:
    """Return how often each item is drawn, with replacement within its group, spread to an unbiased variance; lone items stay at 1."""
    counts = torch.ones(draws, len(groups), dtype=torch.float64)
    for members in _members(groups):
        if len(members) > 1:
            size = len(members)
            drawn = torch.randint(size, (draws, size), generator=generator)
            times = torch.zeros(draws, size, dtype=torch.float64).scatter_add_(1, drawn, torch.ones(draws, size, dtype=torch.float64))
            counts[:, members] = 1 + (times - 1) * (size / (size - 1)) ** 0.5
    return counts


def _halves(groups: Int[Tensor, " n"], draws: int, generator: torch.Generator) -> Float[Tensor, "draw n"]:
    """Return 1 for the items of a random half of every group, 0 for the others."""
    chosen = torch.zeros(draws, len(groups), dtype=torch.float64)
    for members in _members(groups):
        order = torch.rand(draws, len(members), generator=generator).argsort(1).argsort(1)
        chosen[:, members] = (order < len(members) // 2).double()
    return chosen


def _members(groups: Int[Tensor, " n"]) -> list[Int[Tensor, " member"]]:
    return [(groups == g).nonzero().flatten() for g in groups.unique()]
