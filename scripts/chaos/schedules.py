"""Overlapping schedules: two processes with the same run name, restarted as a retry policy would."""

from __future__ import annotations

import tempfile
from pathlib import Path

from chaos.places import Attempt, bucket_place, make_images
from trainer.errors import TemporaryError
from trainer.release.audit_log import RECORDS, read_records
from trainer.release.overview import overview
from trainer.runs.publish import latest_run, verify
from trainer.storage.store import open_store

_MOST_STARTS = 6
_KEPT = 5
_SETTINGS = (
    "data.image_size=16", "model={family: plain, filters: [8]}", "train.epochs=10",
    "optimizer.learning_rate=0.01", "train.global_batch_size=8", "publish.release=true",
    "publish.skip_unchanged=true", f"publish.keep_runs={_KEPT}",
)  # fmt: skip


def main(times: int, seed: int) -> list[str]:
    """Run `times` races in one bucket; return those without exactly one run, one decision and all files."""
    with tempfile.TemporaryDirectory() as temporary, bucket_place("schedules") as output:
        data = make_images(Path(temporary, "data"), per_class=40)
        problems: list[str] = []
        for turn in range(times):
            problems += _race(turn, seed + turn, data, output, Path(temporary))
        champions = sum(bool(each["is_released"]) for each in read_records(open_store(output)))
    print(f"{times} races of two processes: {times - len(problems)} with one run, one decision and all files")
    print(f"the champion changed {champions} times")
    return problems


def _race(turn: int, seed: int, data: Path, output: str, folder: Path) -> list[str]:
    """Start two processes, and restart those that exit with 75; return the failures."""
    name = f"run-{turn:03}"
    settings = [each for setting in (*_SETTINGS, f"seed={seed}") for each in ("--set", setting)]
    arguments = ["--data", str(data), "--output", output, "--run-name", name, *settings]
    codes: list[list[int]] = [[], []]
    for _ in range(_MOST_STARTS):
        waiting = [each for each in (0, 1) if not codes[each] or codes[each][-1] == TemporaryError.exit_code]
        both = [(each, Attempt(arguments, folder / f"cache-{each}")) for each in waiting]
        for each, attempt in both:
            codes[each].append(attempt.end())
    problems = _problems(name, turn, output)
    if [each[-1] for each in codes] != [0, 0]:
        problems.append(f"exit codes {codes}")
    print(f"{name}: exit codes {codes[0]} and {codes[1]}", flush=True)
    return [f"race {turn}: {'; '.join(problems)}"] if problems else []


def _problems(name: str, turn: int, output: str) -> list[str]:
    store = open_store(output)
    rows = list(overview(store))
    problems = verify(store.below(name))
    states = {row.name: row.state for row in rows}
    if "unfinished" in states.values():
        problems.append(f"{[each for each, state in states.items() if state == 'unfinished']} unfinished")
    champion = [row.name for row in rows if row.is_champion]
    kept = [f"run-{each:03}" for each in range(max(0, turn - _KEPT + 1), turn + 1)] + champion
    problems += [f"{each} is lost" for each in kept if states.get(each) != "finished"]
    records = read_records(store)
    # There is no champion until a run is better than guessing.
    if len(champion) != any(each["is_released"] for each in records):
        problems.append(f"{len(champion)} champions")
    decided = [each["run"] for each in records]
    if decided.count(name) != 1:
        problems.append(f"{decided.count(name)} decisions about it")
    if latest_run(store) != name:
        problems.append(f"the latest is {latest_run(store)}")
    known = {row.name for row in rows} | {RECORDS, "champion", "latest"}
    left = {entry.name.partition("/")[0] for entry in store.entries()} - known
    return problems + ([f"left over: {sorted(left)}"] if left else [])
