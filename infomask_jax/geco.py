"""A target for the likelihood in place of fixed betas (after GECO: Rezende & Viola 2018, "Taming VAEs")."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

LOG_BETA_BOUND = math.log(1e3)  # the factor on the betas stays within 1/1000 .. 1000
LOG_BETA_STEP = 0.03  # largest change of its logarithm in one step
NLL_DECAY = 0.95  # of the moving average of the batch NLL: about the last twenty steps


class Constraint(NamedTuple):
    """What `loss.target_nll` adds to the training state: two float32 scalars."""

    log_beta: jax.Array
    """u; the betas are multiplied by exp(u)."""
    average_nll: jax.Array
    """Moving average of the batch NLL, nats per image."""


def initial_constraint(target: float) -> Constraint:
    """Factor 1 and, so that nothing moves before there is something to average, an NLL on target."""
    return Constraint(jnp.float32(0.0), jnp.float32(target))


def adapt_beta(constraint: Constraint, target: float, batch_nll: jax.Array, charge: jax.Array) -> Constraint:
    """Raise the factor on the betas while the average NLL is under the target, lower it while it is above.

    GECO minimises rate + lambda (NLL - target) and raises lambda exponentially while a moving average of the
    constraint is violated. This is that Lagrangian divided by lambda, exp(u) = 1/lambda: the same stationary points,
    and a gradient whose scale stays that of the NLL. Ours: the division, that both betas share the factor, the bounded
    logarithm of target / average in place of their difference (the step has no unit), the bound on u, and that the
    step is multiplied by the schedule.

    Args:
      target: nats per image, positive; batch_nll: scalar, of this batch.
      charge: scalar in 0 .. 1 of the schedule: u rests until the KLs are charged. The average runs from the start.
    """
    average = NLL_DECAY * constraint.average_nll + (1.0 - NLL_DECAY) * batch_nll
    gap = jnp.clip(jnp.log(target / average), -1.0, 1.0)
    log_beta = constraint.log_beta + LOG_BETA_STEP * charge * gap
    return Constraint(jnp.clip(log_beta, -LOG_BETA_BOUND, LOG_BETA_BOUND), average)
