"""The weights of a ridge logistic probe between harmful and harmless rows."""

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor

from resect.directions.baselines import Baseline
from resect.directions.values import Directions
from resect.errors import UserError


def logistic(
    harmful: Float[Tensor, "prompt layer d_model"],
    baseline: Baseline,
    *,
    labels: Int[Tensor, " prompt"] | None = None,
    seed: int = 0,
    ridge: float = 0.01,
) -> Directions:
    """Return w of the probe sigma(w . x + b), one direction a layer: the log-odds of "harmful" by activation unit.

    Minimises the mean cross-entropy (both sides weigh one half; harmless rows weigh what the baseline subtracts of them) plus
    ridge / 2 * |w|^2, with activations measured in their root-mean-square distance from the mean, so that `ridge` has no unit.

    Raises:
        UserError: for a ridge that is not above 0 (separable rows have no finite probe without), or where the search does not converge.
    """
    del labels, seed
    if not ridge > 0:
        raise UserError(f"The ridge of a logistic probe must be above 0, got {ridge:g}; 0.01 is the default.")
    rows = torch.cat([harmful, baseline.rows]).double().transpose(0, 1)
    truth = np.repeat([1.0, 0.0], [len(harmful), len(baseline.rows)])
    mass = np.concatenate([np.full(len(harmful), 0.5 / len(harmful)), 0.5 * baseline.shares.double().numpy()])
    vectors = torch.stack([_probe(layer, truth, mass, ridge) for layer in rows])
    return Directions(vectors[:, None, :].float(), "logistic")


def _probe(rows: Float[Tensor, "row d_model"], truth: np.ndarray, mass: np.ndarray, ridge: float) -> Float[Tensor, " d_model"]:
    """Return the weights of one layer: found in a basis of the rows' span, outside of which the ridge leaves none."""
    centred = rows - torch.from_numpy(mass) @ rows
    scale = (torch.from_numpy(mass) @ centred.square().sum(1)).sqrt()
    basis = torch.linalg.qr(centred.T).Q
    x = (centred @ basis / scale).numpy()

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        logits = x @ w[:-1] + w[-1]
        error = mass * (expit(logits) - truth)
        value = mass @ (np.logaddexp(0, logits) - truth * logits) + ridge / 2 * w[:-1] @ w[:-1]
        return value, np.append(x.T @ error + ridge * w[:-1], error.sum())

    found = minimize(loss, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B", options={"gtol": 1e-9, "ftol": 1e-15, "maxiter": 5000})
    if np.abs(found.jac).max() > 1e-6:
        raise UserError(f"The logistic probe did not converge at ridge {ridge:g}; use a larger one.")
    return basis @ torch.from_numpy(found.x[:-1]) / scale
