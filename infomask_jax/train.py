"""Training: the state, the pure step, and the loop that feeds, logs, saves and resumes."""

import contextlib
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training import train_state

from infomask_jax import checkpoint, command, cpu, monitor, parallel, pipeline, run, weights
from infomask_jax.config import Config
from infomask_jax.datasets import Prepared
from infomask_jax.finetune import of_encoder, without_gradient
from infomask_jax.geco import Constraint, adapt_beta, initial_constraint
from infomask_jax.losses import infomask_loss, kl_charge, positive_weights
from infomask_jax.model import build
from infomask_jax.validation import Best, Validation
from infomask_jax.watch import Watchers

WARM_UP, CLIP_NORM, WEIGHT_DECAY = 0.05, 1.0, 1e-4  # share of the steps; largest norm of a gradient; on kernels only


class TrainState(train_state.TrainState):
    """Parameters, optimizer state and step, with the run's PRNG key; the key never changes, the step is folded in."""

    key: jax.Array
    constraint: Constraint | None = None  # of runs with a target NLL and a KL to weigh


def create_state(config: Config, findings: int) -> TrainState:
    """Initial state, a pure function of the config; trained weights of the encoder are not in it yet."""
    model, size, steps = build(config.model, findings), config.data.image_size, config.train.steps
    key_init, key_train = jax.random.split(jax.random.key(config.seed))
    params = cpu.initializer(model)(key_init, jnp.zeros((1, size, size, 1)))["params"]
    warm_up = min(max(1, round(WARM_UP * steps)), steps - 1)
    rate = optax.warmup_cosine_decay_schedule(0.0, config.train.learning_rate, warm_up, steps)
    decay = optax.adamw(rate, weight_decay=WEIGHT_DECAY, mask=partial(jax.tree.map, lambda p: p.ndim > 1))
    tx, loss = optax.chain(optax.clip_by_global_norm(CLIP_NORM), decay, *of_encoder(config)), config.loss
    constraint = initial_constraint(loss.target_nll) if loss.target_nll and (loss.beta_z or loss.beta_m) else None
    state = TrainState.create(apply_fn=model.apply, params=params, tx=tx, key=key_train, constraint=constraint)
    return state.replace(step=jnp.int32(0))


def first_state(config: Config, findings: int) -> tuple[TrainState, dict | None]:
    """`create_state` with the encoder's trained weights, if it has any and the run is not begun, whose checkpoints have
    them; and what was read, for the manifest."""
    state = create_state(config, findings)
    if not config.model.init or run.saved(config.workdir):
        return state, None
    params, read = weights.load(config.model, state.params)
    return state.replace(params=params), read


def mask_waits(config: Config, gradients: dict, charge: jax.Array) -> dict:
    """The gradients, 0 for the mask's own layer until its KL is charged: free of charge it would open until its sigmoid
    saturates, and never close again (ours). Where one sum teaches all, `teach_through_mask`, it waits for nothing."""
    if "mask" not in gradients or config.model.teach_through_mask:
        return gradients
    return gradients | {"mask": jax.tree.map(lambda g: g * (charge > 0), gradients["mask"])}


def make_train_step(config: Config, axis: str | None = None, positive_weight=None):
    """The pure function train_step(state, batch) -> (state, metrics), batch as in pipeline.py. Metrics are scalars: of
    infomask_loss, loss, grad_norm, kl_charge and, with a target NLL, geco_factor. Parts of a batch are averaged, which
    is exact without padding. axis: pmap's, whose step sees one device's part. positive_weight: see infomask_loss."""

    def train_step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        key = jax.random.fold_in(state.key, state.step)
        charge = kl_charge(state.step, config.train.steps, config.loss.delay)
        factor = 1.0 if state.constraint is None else jnp.exp(state.constraint.log_beta)

        def loss_fn(params, batch):
            options = {"train": True, "positions": batch["position"], "rngs": {"sample": key}}
            params = without_gradient(config, params)
            logits, out = state.apply_fn({"params": params}, batch["image"], **options)
            loss, metrics = infomask_loss(config.loss, logits, out, batch, charge * factor, positive_weight)
            return loss, metrics | {"loss": loss}

        size = len(batch["image"])
        first = 0 if axis is None else jax.lax.axis_index(axis) * size
        batch = batch | {"position": first + jnp.arange(size)}
        gradient = partial(jax.grad(loss_fn, has_aux=True), state.params)
        gradients, metrics = parallel.accumulate(gradient, batch, config.machine.accumulate)
        if axis is not None:
            gradients, metrics = jax.lax.pmean((gradients, metrics), axis)
        gradients = mask_waits(config, gradients, charge)
        metrics |= {"grad_norm": optax.tree.norm(gradients), "kl_charge": charge}
        if state.constraint is not None:
            metrics["geco_factor"] = factor
            constraint = adapt_beta(state.constraint, config.loss.target_nll, metrics["nll"], charge)
            state = state.replace(constraint=constraint)
        return state.apply_gradients(grads=gradients), metrics

    return train_step


def training_labels(data: Prepared) -> np.ndarray:
    """[N, K] of 1, 0, -1. ValueError where no finding has both positives and negatives."""
    source = data.source("train", ("labels",))
    labels = np.array([source[i]["labels"] for i in range(len(source))])
    if not ((labels == 1).any(axis=0) & (labels == 0).any(axis=0)).any():
        each = zip(data.findings, labels.T, strict=True)
        counts = (f"{name} {np.sum(own == 1)} and {np.sum(own == 0)}" for name, own in each)
        told = "expected a finding that some films of train have and some have not, found of films with and without"
        raise ValueError(f"{data.directory}: {told}: {', '.join(counts)}; nothing can be learned from them")
    return labels


def train(config: Config, data: Prepared) -> TrainState:
    """Train to config.train.steps, or resume: same command, same result, bit for bit.

    Writes config.json, manifest.json, metrics.jsonl, checkpoints/ and best/ under config.workdir. Signals and a notice
    that the machine will be taken away save and raise command.Stopped. ValueError if the folder is another run's,
    FloatingPointError if the loss is not finite, OSError if nothing can be written or another process trains there.
    """
    workdir, machine, total = Path(config.workdir), config.machine, config.train.steps
    replicated, split = parallel.shardings(config.data.batch_size)
    labels = training_labels(data)
    make_step = partial(make_train_step, config, positive_weight=positive_weights(config.loss, labels))
    step_fn = parallel.compiled(make_step, config.data.batch_size, machine)
    state, read = first_state(config, len(data.findings))
    state = parallel.place(state, replicated)
    to_devices, whole = partial(parallel.to_devices, split=split), lambda state: state
    if machine.parallel == "pmap":
        to_devices, whole = None, partial(parallel.unstack, replicated=replicated)
    source, validation = data.source("train", pipeline.FIELDS), Validation(config, data)
    batches = pipeline.train_batches(source, config.data, config.seed, machine, to_devices, *parallel.part())
    with parallel.main_first("claim"):
        if read and parallel.is_main():
            print(f"encoder from {read['file']}, made for {read['input']}; left out: {', '.join(read['left_out'])}")
        claimed = run.claim(config, data, read)  # only now: settings that cannot run must not own the folder
    with (
        claimed,
        checkpoint.manager(workdir) as checkpoints,
        monitor.Stop() as stop,
        monitor.progress_bar() as progress,
        monitor.profile(workdir / "profile" if machine.profile else None) as profile,
        contextlib.ExitStack() as several,
    ):
        state, step, broken = checkpoint.restore_newest(checkpoints, state, batches)
        monitor.tell_of_resuming(progress.console, workdir, step, total, broken)
        if machine.parallel == "pmap":
            state = parallel.stack(state)
        watchers = several.enter_context(Watchers(config, step))
        log = monitor.MetricsLog(workdir / "metrics.jsonl", step, config.data.batch_size, watchers.tell)
        going = validation.every and step < total
        best = several.enter_context(Best(workdir, checkpoints, log.rows, step)) if going else None
        if step < total:
            monitor.tell_of_beginning(progress.console, config, data, labels)
        task = progress.add_task(workdir.name, total=total, completed=step, status="compiling")
        stopping, told = False, False
        while step < total and not stopping:
            started = time.perf_counter()
            batch = next(batches)
            log.waited += time.perf_counter() - started
            state, metrics = step_fn(state, batch)
            step += 1
            log.add(step, metrics)
            profile(metrics)
            if step % machine.log_every == 0 or step == total or validation.due(step):
                scores = log.apart(partial(validation.scores, whole(state).params)) if validation.due(step) else {}
                row = log.flush(scores)
                progress.update(task, completed=step, status=monitor.status(row))
                if not told and "images_per_s" in row:
                    pass_of = log.apart(partial(validation.seconds_per_film, whole(state).params))
                    monitor.tell_of_time(progress.console, config, data, step, row, pass_of)
                    told = True
                if scores:
                    best.keep(step, scores, whole(state), batches)
                    watchers.show(step, validation.picture() if watchers.any else None)
            if step % machine.checkpoint_every == 0 and step < total:
                log.flush()  # what is saved has been checked, and a resumed run's log lacks no step
                if best:
                    checkpoint.wait(best.checkpoints)  # the log says that it is there
                checkpoint.save(checkpoints, step, whole(state), batches)
            if jax.process_count() == 1 or step % machine.log_every == 0:  # asking the others makes all wait
                stopping = parallel.anywhere(stop.requested)
        log.flush()
        if best:
            checkpoint.wait(best.checkpoints)
        if checkpoints.latest_step() != step:
            checkpoint.save(checkpoints, step, whole(state), batches)
        checkpoint.wait(checkpoints)
    monitor.tell_of_waiting(progress.console, workdir, log)
    if step < total or parallel.anywhere(stop.requested):
        raise command.Stopped(f"stopped at step {step} of {total}; saved. The same command continues from there.")
    return whole(state)
