"""Which of an encoder's trained weights move, and how fast."""

import jax
import optax

from infomask_jax.config import Config


def of_encoder(config: Config) -> tuple[optax.GradientTransformation, ...]:
    """What becomes of the updates of an encoder's trained weights, decay and all: none in frozen stages and before
    `head_first` of the steps, then `encoder_rate` times them."""
    if not config.model.init:
        return ()
    first = config.train.head_first * config.train.steps

    def stages(params, chosen):
        return {k: k in {f"stages_{n}" for n in chosen} for k in params["encoder"]}

    def mask(chosen):
        return lambda params: dict.fromkeys(params, False) | {"encoder": stages(params, chosen)}

    frozen = config.model.frozen_stages
    rate = optax.scale_by_schedule(lambda step: config.train.encoder_rate * (step >= first))
    return optax.masked(rate, mask(range(frozen, 5))), optax.masked(optax.set_to_zero(), mask(range(frozen)))


def without_gradient(config: Config, params: dict) -> dict:
    """The parameters, those of frozen stages as constants, so that no gradient is computed for them or before them."""
    frozen = {f"stages_{n}" for n in range(config.model.frozen_stages)}
    if not frozen:
        return params
    encoder = {k: jax.lax.stop_gradient(p) if k in frozen else p for k, p in params["encoder"].items()}
    return params | {"encoder": encoder}
