"""Overlapping schedules: two processes with the same run name, restarted as a retry policy would."""

from __future__ import annotations

import tempfile
from pathlib import Path

from chaos.fixtures import Attempt, emulated_bucket, make_images
from trainer.errors import TemporaryError
from trainer.release.audit_log import RECORDS, read_records
from trainer.release.overview import overview
from trainer.runs.publish import latest_run, verify
from trainer.storage import open_store

_MAX_STARTS = 6
_KEEP_RUNS = 5
_SETTINGS = (
    "data.image_size=16", "model={family: plain, filters: [8]}", "train.epochs=10",
    "optimizer.learning_rate=0.01", "train.global_batch_size=8", "publish.release=true",
    "publish.skip_unchanged=true", f"publish.keep_runs={_KEEP_RUNS}",
)  # fmt: skip


def main(times: int, seed: int) -> list[str]:
    """Run `times` races in one bucket; return those without exactly one run, one decision and all files."""
    with tempfile.TemporaryDirectory() as temporary, emulated_bucket("schedules") as output:
        data = make_images(Path(temporary, "data"), per_class=40)
        problems: list[str] = []
        for turn in range(times):
            problems += _race(turn, seed + turn, data, output, Path(temporary))
        champions = sum(bool(record["is_released"]) for record in read_records(open_store(output)))
    print(f"{times} races of two processes: {times - len(problems)} with one run, one decision and all files")
    print(f"the champion changed {champions} times")
    return problems


def _race(turn: int, seed: int, data: Path, output: str, folder: Path) -> list[str]:
    """Start two processes, and restart those that exit with 75; return the failures."""
    name = f"run-{turn:03}"
    settings = [part for setting in (*_SETTINGS, f"seed={seed}") for part in ("--set", setting)]
    arguments = ["--data", str(data), "--output", output, "--run-name", name, *settings]
    codes: list[list[int]] = [[], []]
    for _ in range(_MAX_STARTS):
        pending = [
            index for index in (0, 1) if not codes[index] or codes[index][-1] == TemporaryError.exit_code
        ]
        attempts = [(index, Attempt(arguments, folder / f"cache-{index}")) for index in pending]
        for index, attempt in attempts:
            codes[index].append(attempt.end())
    problems = _problems(name, turn, output)
    if [process_codes[-1] for process_codes in codes] != [0, 0]:
        problems.append(f"exit codes {codes}")
    print(f"{name}: exit codes {codes[0]} and {codes[1]}", flush=True)
    return [f"race {turn}: {'; '.join(problems)}"] if problems else []


def _problems(name: str, turn: int, output: str) -> list[str]:
    store = open_store(output)
    rows = list(overview(store))
    problems = verify(store.below(name))
    states = {row.name: row.state for row in rows}
    if "unfinished" in states.values():
        problems.append(f"{[run for run, state in states.items() if state == 'unfinished']} unfinished")
    champion = [row.name for row in rows if row.is_champion]
    required = [f"run-{number:03}" for number in range(max(0, turn - _KEEP_RUNS + 1), turn + 1)] + champion
    problems += [f"{run} is lost" for run in required if states.get(run) != "finished"]
    records = read_records(store)
    # There is no champion until a run is better than guessing.
    if len(champion) != any(record["is_released"] for record in records):
        problems.append(f"{len(champion)} champions")
    decided = [record["run"] for record in records]
    if decided.count(name) != 1:
        problems.append(f"{decided.count(name)} release decisions")
    if latest_run(store) != name:
        problems.append(f"latest names {latest_run(store)}")
    known = {row.name for row in rows} | {RECORDS, "champion", "latest"}
    leftovers = {entry.name.partition("/")[0] for entry in store.entries()} - known
    return problems + ([f"leftover files: {sorted(leftovers)}"] if leftovers else [])
