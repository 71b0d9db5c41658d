"""Many runs in one process, in lockstep: for an accelerator, whose step takes less time than reading its batch."""

import contextlib
import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from infomask_jax import checkpoint, command, monitor, parallel, pipeline
from infomask_jax.config import Config
from infomask_jax.datasets import Prepared
from infomask_jax.losses import positive_weights
from infomask_jax.run import claim
from infomask_jax.train import first_state, make_train_step, training_labels


def train_together(configs: list[Config], data: Prepared) -> None:
    """Train those runs of one base that have no checkpoint yet, all at once, each to what `train` makes of it; only its
    images_per_s is in the time of all.

    Runs of one seed take the same batches, which are read once, and the seeds of a variant the same program. Saves at
    the end and when told to stop (then command.Stopped is raised). FloatingPointError if a loss stops being finite: the
    other runs are saved.
    """
    configs = [c for c in configs if not (Path(c.workdir) / "checkpoints").exists()]
    if not configs:
        return
    first = configs[0]  # of whose data settings, steps and machine all are
    total, every = first.train.steps, first.machine.log_every
    replicated, split = parallel.shardings(first.data.batch_size)
    source, labels = data.source("train", pipeline.FIELDS), training_labels(data)
    if not first.machine.workers:  # loader processes share nothing
        source = pipeline.Decoded(source, first.machine.cache_gib)
    to_devices = partial(parallel.to_devices, split=split)
    streams = {
        seed: pipeline.train_batches(source, first.data, seed, first.machine, to_devices)
        for seed in {c.seed for c in configs}
    }
    with contextlib.ExitStack() as claimed, monitor.Stop() as stop, monitor.progress_bar() as progress:
        task = progress.add_task(f"compiling for {len(configs)} runs", total=total, status="")
        batches = {seed: next(stream) for seed, stream in streams.items()}
        states, steps, logs, programs = [], [], [], {}
        with ThreadPoolExecutor() as compiling:
            for config in configs:
                state, weights = first_state(config, len(data.findings))
                same = dataclasses.replace(config, seed=0, workdir=first.workdir, map_shifts=1)  # as to the program
                if same not in programs:
                    weigh = positive_weights(config.loss, labels)
                    step = parallel.jitted(make_train_step(config, positive_weight=weigh), replicated)
                    lowered = step.lower(parallel.place(state, replicated), batches[config.seed])
                    programs[same] = state, compiling.submit(lowered.compile)
                of_program, program = programs[same]
                state = state.replace(apply_fn=of_program.apply_fn, tx=of_program.tx)
                states.append(parallel.place(state, replicated))
                steps.append(program)
                claimed.enter_context(claim(config, data, weights))
                logs.append(monitor.MetricsLog(Path(config.workdir) / "metrics.jsonl", 0, config.data.batch_size))
        steps = [program.result() for program in steps]
        progress.update(task, description=f"{len(configs)} runs together")
        done, broken = 0, []
        while done < total and not (done and stop.requested):
            if done:
                started = time.perf_counter()
                batches = {seed: next(stream) for seed, stream in streams.items()}
                for log in logs:
                    log.waited += time.perf_counter() - started
            done += 1
            for i, config in enumerate(configs):
                states[i], metrics = steps[i](states[i], batches[config.seed])
                logs[i].add(done, metrics)
            if done % every == 0:
                try:
                    for log in logs:
                        log.flush()
                except FloatingPointError:  # told below
                    break
                progress.update(task, completed=done, status=str(first.workdir))
        for config, log, state in zip(configs, logs, states, strict=True):
            try:
                log.flush()
            except FloatingPointError as error:
                broken.append(f"{config.workdir}: {error}")
                continue
            with checkpoint.manager(config.workdir) as checkpoints:
                checkpoint.save(checkpoints, done, state, streams[config.seed])
                checkpoint.wait(checkpoints)
    if broken:
        raise FloatingPointError("\n".join([*broken, f"The other runs have saved at step {done}."]))
    if done < total:
        raise command.Stopped(f"stopped at step {done} of {total}; saved. The same command continues from there.")
