"""Process info read from the environment of a cluster, and errors of invalid environments."""

from __future__ import annotations

import json
from typing import Any

import pytest

from trainer.distributed import ProcessInfo, read_process_info
from trainer.errors import UsageError

TWO = {"chief": ["a:2222"], "worker": ["b:2222", "c:2222"]}


def read_tf_config(cluster: object, task: object, **more: str) -> ProcessInfo:
    return read_process_info({"TF_CONFIG": json.dumps({"cluster": cluster, "task": task}), **more}, "host")


@pytest.mark.parametrize(
    "environment", [{}, {"TF_CONFIG": ""}, {"TF_CONFIG": "{}"}, {"JOB_COMPLETION_INDEX": "3"}]
)
def test_process_without_a_cluster_is_single(environment: dict[str, str]) -> None:
    process = read_process_info(environment, "host")
    assert (process.process_count, process.process_index, process.is_chief, process.control) == (
        1,
        0,
        True,
        "",
    )


@pytest.mark.parametrize(
    ("kind", "index", "expected"), [("chief", 0, 0), ("worker", 0, 1), ("worker", 1, 2), ("worker", "1", 2)]
)
def test_chief_has_index_0_and_workers_follow(kind: str, index: object, expected: int) -> None:
    process = read_tf_config(TWO, {"type": kind, "index": index})
    assert process.addresses == ("a:2222", "b:2222", "c:2222")
    assert (process.process_index, process.is_chief, process.control) == (expected, expected == 0, "a:3222")


def test_first_worker_is_the_chief_if_there_is_no_other() -> None:
    process = read_tf_config({"worker": ["b:2222", "c:65000"], "ps": []}, {"type": "worker", "index": 0})
    assert (process.process_index, process.is_chief, process.process_count) == (0, True, 2)


def test_control_port_is_the_open_port_of_vertex() -> None:
    process = read_tf_config(TWO, {"type": "worker", "index": 1}, CLUSTER_SPEC='{"open_ports": [3333]}')
    assert process.control == "a:3333"
    assert read_tf_config({"worker": ["a:65000", "b:1"]}, {"type": "worker", "index": 0}).control == "a:64000"


def test_cluster_of_one_process_is_single() -> None:
    assert read_tf_config({"chief": ["a:1"]}, {"type": "chief", "index": 0}) == ProcessInfo()


@pytest.mark.parametrize(
    ("cluster", "task", "message"),
    [
        ({**TWO, "ps": ["d:1"]}, {"type": "chief", "index": 0}, "Parameter servers are not supported"),
        ({**TWO, "evaluator": ["d:1"]}, {"type": "chief", "index": 0}, "Evaluators are not supported"),
        (TWO, {"type": "evaluator", "index": 0}, "Evaluators are not supported"),
        (TWO, {"type": "ps", "index": 0}, "Parameter servers"),
        (TWO, {"type": "worker", "index": 2}, "a task that is in its cluster"),
        (TWO, {"type": "worker", "index": -1}, "a task that is in its cluster"),
        (TWO, {"type": "worker", "index": None}, "a task that is in its cluster"),
        (TWO, {}, "only tasks of type chief and worker"),
        ({"worker": ["a:1", "a:1"]}, {"type": "worker", "index": 0}, "a different address for each"),
        ({}, {"type": "evaluator", "index": 0}, "Evaluators are not supported"),
        ({"worker": ["http://a:1", "b:1"]}, {"type": "worker", "index": 0}, "as a list of HOST:PORT"),
        ({"worker": [" a:1", "b:1"]}, {"type": "worker", "index": 0}, "as a list of HOST:PORT"),
        (TWO, {"type": "worker", "index": "\u00b2"}, "a task that is in its cluster"),
        ({"worker": ["a:\u00b2", "b:1"]}, {"type": "worker", "index": 0}, "as a list of HOST:PORT"),
        ({"worker": ["a:" + "9" * 5000, "b:1"]}, {"type": "worker", "index": 0}, "as a list of HOST:PORT"),
        ({"worker": "a:1"}, {"type": "worker", "index": 0}, "as a list of HOST:PORT"),
        ({"worker": ["a"]}, {"type": "worker", "index": 0}, "as a list of HOST:PORT"),
        ({"worker": ["a:99999", "b:1"]}, {"type": "worker", "index": 0}, "as a list of HOST:PORT"),
        ({"chief": ["a:1", "b:1"]}, {"type": "chief", "index": 0}, "at most one chief"),
        ({"chief": ["a:1"], "master": ["b:1"]}, {"type": "chief", "index": 0}, "at most one chief"),
        (["a:1"], {"type": "chief", "index": 0}, "the objects cluster and task"),
    ],
)
def test_invalid_tf_config_is_refused_with_a_reason(cluster: Any, task: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        read_tf_config(cluster, task)
    assert "Received: " in str(raised.value)


@pytest.mark.parametrize("text", ["{", "[]", "null", "7", "[" * 200_000], ids=len)
def test_tf_config_that_is_not_a_json_object_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"TF_CONFIG is .*JSON"):
        read_process_info({"TF_CONFIG": text}, "host")


JOB = {"TRAINER_WORKERS": "3", "TRAINER_SERVICE": "peers", "JOB_COMPLETION_INDEX": "2"}


def test_addresses_of_an_indexed_job_are_the_names_of_its_pods() -> None:
    process = read_process_info(JOB, "flowers-1-2")
    assert process.addresses == tuple(f"flowers-1-{index}.peers:2222" for index in range(3))
    assert (process.process_index, process.control) == (2, "flowers-1-0.peers:3222")
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
def test_invalid_variables_of_an_indexed_job_are_refused(change: dict[str, str], host: str) -> None:
    with pytest.raises(UsageError, match="TRAINER_WORKERS"):
        read_process_info({**JOB, **change}, host)
