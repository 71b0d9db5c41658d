"""Many runs in one process, in lockstep: for an accelerator, whose step takes less time than reading its batch."""

import contextlib
import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from operator import attrgetter
from pathlib import Path

from infomask_jax import checkpoint, command, manifest, monitor, parallel, pipeline
from infomask_jax.config import Config
from infomask_jax.datasets import Prepared
from infomask_jax.train import first_state, make_train_step

SAME = attrgetter("data", "train.steps", "machine")  # of runs that train together


def train_together(configs: list[Config], data: Prepared) -> None:
    """Train those of the runs that have no checkpoint yet, all at once; where they end, each is what `train` makes of
    it, but for times: each one's images_per_s is in the time of all.

    Runs of one seed take the same batches, which are read once, and the seeds of a variant the same program. Programs
    are compiled side by side. A checkpoint is written at the end and when told to stop (then command.Stopped is
    raised), not in between. ValueError if the runs do not agree in data settings, steps and machine, or a folder is
    another run's; FloatingPointError if a loss stops being finite: the other runs are saved.
    """
    configs = [c for c in configs if not (Path(c.workdir) / "checkpoints").exists()]
    if not configs:
        return
    first = configs[0]
    for config in configs:
        if SAME(config) != SAME(first) or config.machine.parallel != "jit":
            raise ValueError(
                f"{config.workdir}: runs that train together need the same data settings, steps and machine, and "
                "parallel jit"
            )
    replicated, split = parallel.shardings(first.data.batch_size)
    to_devices, source = partial(parallel.to_devices, split=split), data.source("train", pipeline.FIELDS)
    if not first.machine.workers:  # loader processes share nothing
        source = pipeline.Decoded(source, first.machine.cache_gib)
    streams = {
        seed: pipeline.train_batches(source, first.data, seed, first.machine, to_devices)
        for seed in {c.seed for c in configs}
    }
    total, every = first.train.steps, first.machine.log_every
    with contextlib.ExitStack() as claimed, monitor.Stop() as stop, monitor.progress_bar() as progress:
        states, weights, programs, compiled, logs = [], [], {}, [], []
        batches = {seed: next(stream) for seed, stream in streams.items()}
        task = progress.add_task(f"compiling for {len(configs)} runs", total=total, status="")
        with ThreadPoolExecutor() as compiling:
            for config in configs:
                state, read = first_state(config, len(data.findings))
                same = dataclasses.replace(config, seed=0, workdir=first.workdir, map_shifts=1)  # as to the program
                if same not in programs:
                    step = parallel.jitted(make_train_step(config), replicated)
                    lowered = step.lower(parallel.place(state, replicated), batches[config.seed])
                    programs[same] = state, compiling.submit(lowered.compile)
                of_program, program = programs[same]
                state = state.replace(apply_fn=of_program.apply_fn, tx=of_program.tx)
                states.append(parallel.place(state, replicated))
                weights.append(read)
                compiled.append(program)
            steps = [program.result() for program in compiled]
        for config, read in zip(configs, weights, strict=True):
            claimed.enter_context(manifest.claim(config, data, read))
            logs.append(monitor.MetricsLog(Path(config.workdir) / "metrics.jsonl", 0, config.data.batch_size))
        progress.update(task, description=f"{len(configs)} runs together")
        done, finite = 0, True
        while done < total and finite and not stop.requested:
            if done:
                started = time.perf_counter()
                batches = {seed: next(stream) for seed, stream in streams.items()}
                for log in logs:
                    log.waited += time.perf_counter() - started
            done += 1
            for i, config in enumerate(configs):
                states[i], metrics = steps[i](states[i], batches[config.seed])
                logs[i].add(done, metrics)
            if done % every == 0 or done == total:
                try:
                    rows = [log.flush() for log in logs]
                except FloatingPointError:  # raised again below
                    finite = False
                else:
                    progress.update(task, completed=done, status=f"{first.workdir} {monitor.status(rows[0])}")
        if not done:
            raise command.Stopped(f"stopped before step 1 of {total}: nothing to save. The same command begins again.")
        broken = []
        for config, state, log in zip(configs, states, logs, strict=True):
            try:
                if log.pending:
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
