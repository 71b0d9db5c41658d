"""Training: the state, the pure step, and the loop that feeds, logs, saves and resumes."""

import json
import signal
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training import train_state
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from infomask_jax import checkpoint, manifest, pipeline
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
    images = jnp.zeros((1, config.data.image_size, config.data.image_size, 1))
    params = jax.jit(lambda key: model.init(key, images, train=False)["params"])(key_init)
    train = config.train
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, train.learning_rate, max(1, round(train.warmup * train.steps)), train.steps
    )
    tx = optax.chain(
        optax.clip_by_global_norm(train.clip_norm),
        optax.adamw(
            schedule, weight_decay=train.weight_decay, mask=lambda tree: jax.tree.map(lambda p: p.ndim > 1, tree)
        ),
    )
    loss = config.loss
    constraint = initial_constraint(loss.target_nll) if loss.target_nll and (loss.beta_z or loss.beta_m) else None
    return TrainState.create(apply_fn=model.apply, params=params, tx=tx, key=key_train, constraint=constraint)


def make_train_step(config: Config):
    """The pure function train_step(state, batch) -> (state, metrics) of a config. Batch as in pipeline.py.

    Metrics are scalars: loss and nll in nats per image, rate_z and rate_m in bits per image, mask_mean, grad_norm,
    beta_scale; with a target NLL also beta, the factor on both betas in this step.
    """

    def train_step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        key = jax.random.fold_in(state.key, state.step)
        scale = weight = beta_scale(state.step, config.train.steps, config.loss.delay, config.loss.ramp)
        if state.constraint is not None:
            beta = jnp.exp(state.constraint.log_beta)
            weight = scale * beta

        def loss_fn(params):
            logits, out = state.apply_fn({"params": params}, batch["image"], train=True, rngs={"sample": key})
            return infomask_loss(config.loss, logits, out, batch, weight)

        (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        if "mask" in grads:
            # Free of charge the mask would open until its sigmoid saturates, and never close again: it waits.
            grads["mask"] = jax.tree.map(lambda g: g * (scale > 0), grads["mask"])
        metrics |= {"loss": loss, "grad_norm": optax.tree.norm(grads), "beta_scale": scale}
        if state.constraint is not None:
            metrics["beta"] = beta
            state = state.replace(
                constraint=adapt_beta(state.constraint, config.loss.target_nll, metrics["nll"], scale)
            )
        return state.apply_gradients(grads=grads), metrics

    return train_step


def data_sharding(batch_size: int) -> tuple[NamedSharding, NamedSharding]:
    """(replicated, split over the batch) on a mesh of all local devices. ValueError if the batch does not divide."""
    devices = jax.local_device_count()
    if batch_size % devices:
        raise ValueError(f"data.batch_size {batch_size} does not divide over {devices} devices: use a multiple of it")
    mesh = jax.make_mesh((devices,), ("batch",), axis_types=(AxisType.Auto,), devices=jax.local_devices())
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("batch"))


def train(config: Config, data: Prepared) -> TrainState:
    """Train to config.train.steps, or resume: same command, same result, bit for bit.

    Writes config.json, manifest.json, metrics.jsonl and checkpoints/ under config.workdir. SIGINT and SIGTERM save and
    raise KeyboardInterrupt. ValueError if the work directory belongs to another config or dataset; FloatingPointError
    if the loss stops being finite (the last checkpoint before it is kept).
    """
    workdir = Path(config.workdir)
    replicated, split = data_sharding(config.data.batch_size)
    state = jax.device_put(create_state(config, len(data.findings)), replicated)
    step_fn = jax.jit(make_train_step(config), donate_argnums=0, out_shardings=(replicated, replicated))
    iterator = iter(pipeline.train_batches(data.source("train"), config.data, config.seed, split))
    total = config.train.steps
    manifest.claim(config, data)  # only now: settings that cannot run must not own the folder
    with checkpoint.manager(workdir) as checkpoints, _Stop() as stop, _progress() as progress:
        step = checkpoints.latest_step() or 0
        if step:
            state = checkpoint.restore(checkpoints, step, state, iterator)
            progress.console.print(f"resumed {workdir} from step {step} of {total}")
        log = MetricsLog(workdir / "metrics.jsonl", step, config.data.batch_size)
        task = progress.add_task(workdir.name, total=total, completed=step, status="compiling")
        while step < total and not stop.requested:
            started = time.perf_counter()
            batch = next(iterator)
            log.waited += time.perf_counter() - started
            state, metrics = step_fn(state, batch)
            step += 1
            log.add(step, metrics)
            if step % config.train.log_every == 0 or step == total:
                row = log.flush()
                progress.update(task, completed=step, status=_status(row))
            if step % config.train.checkpoint_every == 0 and step < total:
                log.check()
                checkpoint.save(checkpoints, step, state, iterator)
        if log.pending:
            log.flush()
        if checkpoints.latest_step() != step:
            checkpoint.save(checkpoints, step, state, iterator)
        checkpoints.wait_until_finished()
    if waits := [row["data_wait"] for row in log.written if "data_wait" in row]:
        progress.console.print(f"{workdir}: {np.mean(waits):.1%} of the time waited for data")
    if stop.requested or step < total:
        raise KeyboardInterrupt(f"stopped at step {step} of {total}; saved. The same command continues from there.")
    return state


class MetricsLog:
    """metrics.jsonl: one line of means over the steps since the last line, rates of progress, and the finite check.

    Metrics stay on the device until a line is due, so that the loop never waits for a step it need not wait for.
    """

    def __init__(self, path: Path, step: int, batch_size: int):
        self.path, self.batch_size = path, batch_size
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text("".join(line + "\n" for line in kept))  # lines after the checkpoint will come again
        temporary.replace(path)
        self.last = json.loads(kept[-1]) if kept else None
        self.written: list[dict[str, float]] = []
        self.pending: list[tuple[int, dict]] = []
        self.since, self.waited, self.first = time.perf_counter(), 0.0, True

    def add(self, step: int, metrics: dict) -> None:
        self.pending.append((step, metrics))
        if self.first:  # the first step compiles: keep it out of the rate
            jax.block_until_ready(metrics)
            self.since, self.waited = time.perf_counter(), 0.0

    def check(self) -> list[dict[str, float]]:
        """Fetch what is pending. FloatingPointError naming the first step whose loss or gradient is not finite."""
        rows = jax.device_get([metrics for _, metrics in self.pending])
        for (step, _), row in zip(self.pending, rows, strict=True):
            if not (np.isfinite(row["loss"]) and np.isfinite(row["grad_norm"])):
                raise FloatingPointError(
                    f"step {step}: loss {row['loss']}, gradient norm {row['grad_norm']}. "
                    f"Last finite metrics: {self.last}."
                    " Try a lower train.learning_rate or lower betas, in a new --workdir."
                )
        return rows

    def flush(self) -> dict[str, float]:
        """Write and return the means of the pending steps."""
        rows, step = self.check(), self.pending[-1][0]
        elapsed = max(time.perf_counter() - self.since, 1e-9)
        counted = len(rows) - self.first
        row = {"step": step} | {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
        if counted:
            row |= {"images_per_s": counted * self.batch_size / elapsed, "data_wait": min(1.0, self.waited / elapsed)}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.written.append(row)
        self.last, self.pending, self.first = row, [], False
        self.since, self.waited = time.perf_counter(), 0.0
        return row


class _Stop:
    """Turns SIGINT and SIGTERM into a request to stop after the running step; a second SIGINT interrupts at once."""

    requested = False

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # signals can be set nowhere else
            self.previous = {s: signal.signal(s, self._request) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _request(self, number, frame):
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True

    def __exit__(self, *_):
        for number, handler in getattr(self, "previous", {}).items():
            signal.signal(number, handler)


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(10), TextColumn("{task.completed}/{task.total}"))
    return Progress(*columns, TextColumn("{task.fields[status]}"), TimeRemainingColumn(compact=True))


def _status(row: dict[str, float]) -> str:
    rate = row["rate_z"] + row["rate_m"]
    speed = f" {row['images_per_s']:.0f} images/s" if "images_per_s" in row else ""
    return f"loss {row['loss']:.3f}{f' rate {rate:.0f} bits' if rate else ''}{speed}"
