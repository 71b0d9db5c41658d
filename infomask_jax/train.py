"""Training: the state, the pure step, and the loop that feeds, logs, saves and resumes."""

import functools
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training import train_state

from infomask_jax import checkpoint, command, manifest, monitor, parallel, pipeline
from infomask_jax.config import Config
from infomask_jax.datasets import Prepared
from infomask_jax.losses import Constraint, adapt_beta, beta_scale, infomask_loss, initial_constraint
from infomask_jax.model.infomask import InfoMask


class TrainState(train_state.TrainState):
    """Parameters, optimizer state and step, with the run's PRNG key; the key never changes, the step is folded in.

    `constraint` is there only in runs with a target NLL and a rate to weigh.
    """

    key: jax.Array
    constraint: Constraint | None = None


def create_state(config: Config, findings: int) -> TrainState:
    """Initial state, a pure function of the config (parameters depend on config.seed only)."""
    model = InfoMask(config.model, findings)
    key_init, key_train = jax.random.split(jax.random.key(config.seed))
    params = _initial_params(model, config.data.image_size)(key_init)
    train = config.train
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, train.learning_rate, min(max(1, round(train.warmup * train.steps)), train.steps - 1), train.steps
    )
    tx = optax.chain(
        optax.clip_by_global_norm(train.clip_norm),
        optax.adamw(
            schedule, weight_decay=train.weight_decay, mask=lambda tree: jax.tree.map(lambda p: p.ndim > 1, tree)
        ),
    )
    loss = config.loss
    constraint = initial_constraint(loss.target_nll) if loss.target_nll and (loss.beta_z or loss.beta_m) else None
    state = TrainState.create(apply_fn=model.apply, params=params, tx=tx, key=key_train, constraint=constraint)
    return state.replace(step=jnp.int32(0))


@functools.cache  # the seeds of a model share the program
def _initial_params(model: InfoMask, size: int) -> Callable[[jax.Array], dict]:
    # It runs once: optimized, XLA:CPU takes ten seconds over the random generators, otherwise two.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    images = jnp.zeros((1, size, size, 1))
    return jax.jit(lambda key: model.init(key, images, train=False)["params"], compiler_options=options)


def make_train_step(config: Config, axis: str | None = None):
    """The pure function train_step(state, batch) -> (state, metrics) of a config. Batch as in pipeline.py.

    Metrics are scalars: loss and nll in nats per image, rate_z and rate_m in bits per image, mask_mean, grad_norm,
    beta_scale; with a target NLL also beta, the factor on both betas in this step. Gradients and metrics of the parts
    of a batch are averaged, which is exact as training batches have no padding.

    Args:
      axis: name of pmap's axis, where the step sees one device's part of the batch; None under jit: the whole batch.
    """
    parts = config.train.accumulate

    def train_step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        key = jax.random.fold_in(state.key, state.step)
        scale = weight = beta_scale(state.step, config.train.steps, config.loss.delay, config.loss.ramp)
        if state.constraint is not None:
            beta = jnp.exp(state.constraint.log_beta)
            weight = scale * beta

        def loss_fn(params, batch):
            logits, out = state.apply_fn(
                {"params": params}, batch["image"], train=True, positions=batch["position"], rngs={"sample": key}
            )
            loss, metrics = infomask_loss(config.loss, logits, out, batch, weight)
            return loss, {**metrics, "loss": loss}

        gradient = jax.grad(loss_fn, has_aux=True)
        size = len(batch["image"])
        first = 0 if axis is None else jax.lax.axis_index(axis) * size
        batch = {**batch, "position": first + jnp.arange(size)}
        if parts == 1:
            grads, metrics = gradient(state.params, batch)
        else:
            # Every parts-th image, not consecutive ones: each device finds its share of every part at home.
            batches = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)
            add = partial(jax.tree.map, jnp.add)
            shapes = jax.eval_shape(gradient, state.params, jax.tree.map(lambda x: x[0], batches))
            zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            total, _ = jax.lax.scan(lambda sum, part: (add(sum, gradient(state.params, part)), None), zero, batches)
            grads, metrics = jax.tree.map(lambda x: x / parts, total)
        if axis is not None:
            grads, metrics = jax.lax.pmean((grads, metrics), axis)
        if "mask" in grads:
            # Free of charge the mask would open until its sigmoid saturates, and never close again: it waits.
            grads["mask"] = jax.tree.map(lambda g: g * (scale > 0), grads["mask"])
        metrics |= {"grad_norm": optax.tree.norm(grads), "beta_scale": scale}
        if state.constraint is not None:
            metrics["beta"] = beta
            state = state.replace(
                constraint=adapt_beta(state.constraint, config.loss.target_nll, metrics["nll"], scale)
            )
        return state.apply_gradients(grads=grads), metrics

    return train_step


def parallel_step(config: Config, state: TrainState) -> tuple[Callable, TrainState]:
    """The step over all devices, compiled, and the sharding of every array of the state. It consumes its state.

    With pmap the step takes a state with one copy a device, `parallel.stack`. ValueError if a part of a batch does not
    divide over the devices.
    """
    replicated, _ = parallel.shardings(config.data.batch_size)
    part, devices = config.data.batch_size // config.train.accumulate, jax.device_count()
    if part % devices:
        raise ValueError(
            f"train.accumulate {config.train.accumulate} leaves parts of {part} images, which do not divide over "
            f"{devices} devices: use a smaller one, or a larger data.batch_size"
        )
    layout = jax.tree.map(lambda _: replicated, state)
    if config.parallel == "pmap":
        axis, devices = parallel.AXIS, jax.local_device_count()
        everywhere = parallel.ordered(jax.devices())
        mapped = jax.pmap(make_train_step(config, axis), axis, donate_argnums=0, devices=everywhere)

        def step(state, batch):
            state, metrics = mapped(state, jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), batch))
            return state, jax.tree.map(lambda x: x.addressable_shards[0].data, metrics)  # all devices have the same

        return step, layout
    if config.train.shard_optimizer:
        shard = partial(parallel.optimizer_sharding, replicated=replicated)
        layout = layout.replace(opt_state=jax.tree.map(shard, state.opt_state))
    step = jax.jit(
        make_train_step(config),
        donate_argnums=0,
        out_shardings=(layout, replicated),
        compiler_options=parallel.step_options(),
    )
    return step, layout


def train(config: Config, data: Prepared) -> TrainState:
    """Train to config.train.steps, or resume: same command, same result, bit for bit.

    Writes config.json, manifest.json, metrics.jsonl and checkpoints/ under config.workdir. SIGINT, SIGTERM and a notice
    that the machine will be taken away save and raise command.Stopped. ValueError if the work directory belongs to
    another config, dataset or number of processes; FloatingPointError if the loss stops being finite (the last
    checkpoint before it is kept); OSError if nothing can be written, or another process trains there.
    """
    workdir = Path(config.workdir)
    replicated, split = parallel.shardings(config.data.batch_size)
    state = create_state(config, len(data.findings))
    step_fn, layout = parallel_step(config, state)
    state, to_devices, whole = parallel.place(state, layout), partial(parallel.to_devices, split=split), _identity
    if config.parallel == "pmap":
        to_devices, whole = None, partial(parallel.unstack, replicated=replicated)
    process, processes = jax.process_index(), jax.process_count()
    stream = pipeline.train_batches(
        data.source("train", pipeline.FIELDS), config.data, config.seed, to_devices, process, processes
    )
    iterator, total = iter(stream), config.train.steps
    with parallel.main_first("claim"):
        claimed = manifest.claim(config, data)  # only now: settings that cannot run must not own the folder
    profile = monitor.Profile(workdir / "profile" if config.profile else None)
    with (
        claimed,
        checkpoint.manager(workdir) as checkpoints,
        monitor.Stop() as stop,
        monitor.progress_bar() as progress,
        profile,
    ):
        state, step, broken = checkpoint.restore_newest(checkpoints, state, iterator)
        for message in broken:
            progress.console.print(message, style="yellow")
        if config.parallel == "pmap":
            state = parallel.stack(state)
        if step:
            progress.console.print(f"resumed {workdir} from step {step} of {total}")
            if step < total and (lines := manifest.going_on(workdir, step)):
                told = "not as when it began, so it may not end as it would have:"
                progress.console.print(told, *lines, sep="\n  ", style="yellow", markup=False)
        log = monitor.MetricsLog(workdir / "metrics.jsonl", step, config.data.batch_size)
        task = progress.add_task(workdir.name, total=total, completed=step, status="compiling")
        first_step, stopping = step, False
        while step < total and not stopping:
            started = time.perf_counter()
            batch = next(iterator)
            log.waited += time.perf_counter() - started
            if processes > 1 and step == first_step and config.parallel == "jit":
                step_fn = step_fn.lower(state, batch).compile()
                parallel.wait_for_all("compiled")  # one may take much longer than another
            state, metrics = step_fn(state, batch)
            step += 1
            log.add(step, metrics)
            profile.step(metrics)
            if step % config.train.log_every == 0 or step == total:
                row = log.flush()
                progress.update(task, completed=step, status=monitor.status(row))
            if step % config.train.checkpoint_every == 0 and step < total:
                if log.pending:
                    log.flush()  # what is saved has been checked, and a resumed run's log lacks no step
                checkpoint.save(checkpoints, step, whole(state), iterator)
            if processes == 1 or step % config.train.log_every == 0:  # asking the others makes all wait
                stopping = parallel.anywhere(stop.requested)
        if log.pending:
            log.flush()
        if checkpoints.latest_step() != step:
            checkpoint.save(checkpoints, step, whole(state), iterator)
        checkpoint.wait(checkpoints)
    if waits := [row["data_wait"] for row in log.written if "data_wait" in row]:
        advice = ": --data.cache-gib and --data.workers may help (docs/tpu.md)" if np.mean(waits) > 0.1 else ""
        progress.console.print(f"{workdir}: {np.mean(waits):.1%} of the time waited for data{advice}", soft_wrap=True)
    if step < total or parallel.anywhere(stop.requested):
        raise command.Stopped(f"stopped at step {step} of {total}; saved. The same command continues from there.")
    return whole(state)


def _identity(state: TrainState) -> TrainState:
    return state
