"""Process info read from the environment of a cluster, and errors of invalid environments."""

from __future__ import annotations

import json
from typing import Any

import pytest

from trainer.distributed import ProcessInfo, read_process_info
from trainer.errors import UsageError

TWO = {"chief": ["a:2222"], "worker": ["b:2222", "c:2222"]}


def place(cluster: object, task: object, **more: str) -> ProcessInfo:
    return read_process_info({"TF_CONFIG": json.dumps({"cluster": cluster, "task": task}), **more}, "host")


@pytest.mark.parametrize(
    "environment", [{}, {"TF_CONFIG": ""}, {"TF_CONFIG": "{}"}, {"JOB_COMPLETION_INDEX": "3"}]
)
def test_without_a_cluster_a_process_is_alone(environment: dict[str, str]) -> None:
    found = read_process_info(environment, "host")
    assert (found.process_count, found.process_index, found.is_chief, found.control) == (1, 0, True, "")


@pytest.mark.parametrize(
    ("kind", "index", "expected"), [("chief", 0, 0), ("worker", 0, 1), ("worker", 1, 2), ("worker", "1", 2)]
)
def test_the_chief_comes_first_and_the_workers_after_it(kind: str, index: object, expected: int) -> None:
    found = place(TWO, {"type": kind, "index": index})
    assert found.addresses == ("a:2222", "b:2222", "c:2222")
    assert (found.process_index, found.is_chief, found.control) == (expected, expected == 0, "a:3222")


def test_without_a_chief_the_first_worker_is_it() -> None:
    found = place({"worker": ["b:2222", "c:65000"], "ps": []}, {"type": "worker", "index": 0})
    assert (found.process_index, found.is_chief, found.process_count) == (0, True, 2)


def test_on_vertex_the_open_port_is_used() -> None:
    found = place(TWO, {"type": "worker", "index": 1}, CLUSTER_SPEC='{"open_ports": [3333]}')
    assert found.control == "a:3333"
    assert place({"worker": ["a:65000", "b:1"]}, {"type": "worker", "index": 0}).control == "a:64000"


def test_a_cluster_of_one_is_no_cluster() -> None:
    assert place({"chief": ["a:1"]}, {"type": "chief", "index": 0}) == ProcessInfo()


@pytest.mark.parametrize(
    ("cluster", "task", "words"),
    [
        ({**TWO, "ps": ["d:1"]}, {"type": "chief", "index": 0}, "Parameter servers have no part"),
        ({**TWO, "evaluator": ["d:1"]}, {"type": "chief", "index": 0}, "Evaluators have no part"),
        (TWO, {"type": "evaluator", "index": 0}, "Evaluators have no part"),
        (TWO, {"type": "ps", "index": 0}, "Parameter servers"),
        (TWO, {"type": "worker", "index": 2}, "a task that is one of its cluster"),
        (TWO, {"type": "worker", "index": -1}, "a task that is one of its cluster"),
        (TWO, {"type": "worker", "index": None}, "a task that is one of its cluster"),
        (TWO, {}, "chief and worker only"),
        ({"worker": ["a:1", "a:1"]}, {"type": "worker", "index": 0}, "another address for each"),
        ({}, {"type": "evaluator", "index": 0}, "Evaluators have no part"),
        ({"worker": ["http://a:1", "b:1"]}, {"type": "worker", "index": 0}, "a list of HOST:PORT"),
        ({"worker": [" a:1", "b:1"]}, {"type": "worker", "index": 0}, "a list of HOST:PORT"),
        (TWO, {"type": "worker", "index": "\u00b2"}, "a task that is one of its cluster"),
        ({"worker": ["a:\u00b2", "b:1"]}, {"type": "worker", "index": 0}, "a list of HOST:PORT"),
        ({"worker": ["a:" + "9" * 5000, "b:1"]}, {"type": "worker", "index": 0}, "a list of HOST:PORT"),
        ({"worker": "a:1"}, {"type": "worker", "index": 0}, "a list of HOST:PORT"),
        ({"worker": ["a"]}, {"type": "worker", "index": 0}, "a list of HOST:PORT"),
        ({"worker": ["a:99999", "b:1"]}, {"type": "worker", "index": 0}, "a list of HOST:PORT"),
        ({"chief": ["a:1", "b:1"]}, {"type": "chief", "index": 0}, "one chief at most"),
        ({"chief": ["a:1"], "master": ["b:1"]}, {"type": "chief", "index": 0}, "one chief at most"),
        (["a:1"], {"type": "chief", "index": 0}, "each an object"),
    ],
)
def test_what_has_no_part_or_makes_no_sense_is_refused_with_a_reason(
    cluster: Any, task: Any, words: str
) -> None:
    with pytest.raises(UsageError, match=words) as raised:
        place(cluster, task)
    assert "Received: " in str(raised.value)


@pytest.mark.parametrize("text", ["{", "[]", "null", "7", "[" * 200_000], ids=len)
def test_what_is_no_json_object_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"TF_CONFIG is .*JSON"):
        read_process_info({"TF_CONFIG": text}, "host")


JOB = {"TRAINER_WORKERS": "3", "TRAINER_SERVICE": "peers", "JOB_COMPLETION_INDEX": "2"}


def test_the_pods_of_an_indexed_job_find_each_other_by_their_names() -> None:
    found = read_process_info(JOB, "flowers-1-2")
    assert found.addresses == tuple(f"flowers-1-{index}.peers:2222" for index in range(3))
    assert (found.process_index, found.control) == (2, "flowers-1-0.peers:3222")
    assert (
        read_process_info({**JOB, "TRAINER_WORKERS": "1", "JOB_COMPLETION_INDEX": "0"}, "flowers-0")
        == ProcessInfo()
    )


@pytest.mark.parametrize(
    ("change", "host"),
    [
        ({"TRAINER_WORKERS": "many"}, "flowers-2"),
        ({"TRAINER_WORKERS": "0"}, "flowers-2"),
        ({"TRAINER_WORKERS": "\u00b2"}, "flowers-2"),
        ({"JOB_COMPLETION_INDEX": "\u00b2"}, "flowers-2"),
        ({"TRAINER_SERVICE": ""}, "flowers-2"),
        ({"JOB_COMPLETION_INDEX": ""}, "flowers-2"),
        ({"JOB_COMPLETION_INDEX": "3"}, "flowers-3"),
        ({}, "flowers"),
        ({}, "flowers-1"),
    ],
)
def test_an_indexed_job_that_does_not_fit_is_refused(change: dict[str, str], host: str) -> None:
    with pytest.raises(UsageError, match="TRAINER_WORKERS"):
        read_process_info({**JOB, **change}, host)
