"""Fake Vertex AI, Cloud Scheduler and Cloud Logging over HTTP, limited to the requests of jobs.

Requests are parsed with the message types of Google's clients (scripts/vertex_descriptors.sh), so unknown
fields and wrong types are rejected as by Google.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message_factory import GetMessageClass

from helpers.cloud_project import CloudProject
from helpers.serving import JsonHandler, serving

CUSTOM_JOB = "google.cloud.aiplatform.v1.CustomJob"
PROJECT, NUMBER, REGION = "acme", "123", "europe-west4"
_LOCATION_PATH = re.compile(r"/v1/projects/(?P<project>[^/]+)/locations/(?P<region>[^/]+)/(?P<rest>.*)$")


class Vertex:
    """State of the server, and the error that it returns if one is set."""

    def __init__(self) -> None:
        self.address = ""
        self.jobs: list[dict[str, Any]] = []
        self.schedules: dict[str, dict[str, Any]] = {}
        self.entries: list[dict[str, Any]] = []
        self.refused: tuple[int, str] | None = None
        self.requests: list[str] = []
        self.project = CloudProject(PROJECT, REGION)


@contextmanager
def vertex_server() -> Iterator[Vertex]:
    vertex = Vertex()
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), _handler(vertex))) as server:
        vertex.address = f"http://127.0.0.1:{server.server_port}"
        yield vertex


def read(body: dict[str, Any], kind: str) -> Any:
    """Parse JSON `body` as a message of type `kind`. Raises ParseError if it does not match."""
    return ParseDict(body, GetMessageClass(_POOL.FindMessageTypeByName(kind))())


def _described() -> DescriptorPool:
    pool = DescriptorPool()
    path = Path(__file__).with_name("vertex_descriptors.binpb")
    for file in FileDescriptorSet.FromString(path.read_bytes()).file:
        pool.Add(file)
    return pool


_POOL = _described()


class _Handler(JsonHandler, BaseHTTPRequestHandler):
    vertex: Vertex

    def do_GET(self) -> None:
        if self._is_of_project({}):
            return
        rest = self._resource()
        if rest == "jobs":
            self.answer(200, {"jobs": list(self.vertex.schedules.values())})
        if rest != "customJobs":
            return
        chosen = parse_qs(urlsplit(self.path).query).get("filter", [""])[0]
        named = re.fullmatch(r'displayName="(.*)"', chosen)
        jobs = [job for job in self.vertex.jobs if named is None or job["displayName"] == named[1]]
        self.answer(200, {"customJobs": jobs} if jobs else {})

    def do_POST(self) -> None:
        body = json.loads(self.body())
        if urlsplit(self.path).path == "/v2/entries:list":
            self.vertex.requests.append("POST entries")
            self.answer(200, {"entries": _chosen(self.vertex.entries, body["filter"])})
            return
        if self._is_of_project(body):
            return
        rest = self._resource()
        if rest is None:
            return
        try:
            self._create(rest, body)
        except ParseError as error:
            self._refuse(400, f"Invalid JSON payload received. {error}")

    def do_DELETE(self) -> None:
        rest = self._resource()
        if rest is None:
            return
        if self.vertex.schedules.pop(rest.removeprefix("jobs/"), None) is None:
            self._refuse(404, "Job not found.")
        else:
            self.answer(200, {})

    def _create(self, rest: str, body: dict[str, Any]) -> None:
        if rest.endswith(":cancel"):
            job = next(job for job in self.vertex.jobs if job["name"].endswith(rest.removesuffix(":cancel")))
            job["state"] = "JOB_STATE_CANCELLING"
            self.answer(200, {})
        elif rest == "customJobs":
            read(body, CUSTOM_JOB)
            number = 1000 + len(self.vertex.jobs)
            name = f"projects/{NUMBER}/locations/{REGION}/customJobs/{number}"
            made = {
                "name": name,
                "state": "JOB_STATE_QUEUED",
                "createTime": f"2026-11-27T11:00:{number % 60}Z",
            }
            self.vertex.jobs.append(body | made)
            self.answer(200, self.vertex.jobs[-1])
        elif rest == "jobs":
            read(body, "google.cloud.scheduler.v1.Job")
            read(json.loads(base64.b64decode(body["httpTarget"]["body"])), CUSTOM_JOB)
            name = body["name"].rpartition("/")[2]
            if name in self.vertex.schedules:
                self._refuse(409, f"Job {name} already exists.")
                return
            self.vertex.schedules[name] = body
            self.answer(200, body | {"state": "ENABLED"})

    def _is_of_project(self, body: dict[str, Any]) -> bool:
        answer = self.vertex.project.answer(self.path, body)
        if answer is not None:
            self.answer(*answer)
        return answer is not None

    def _resource(self) -> str | None:
        """Return the path below the location, or None after an error response."""
        path = urlsplit(self.path).path
        self.vertex.requests.append(f"{self.command} {path}")
        match = _LOCATION_PATH.match(path)
        if match is None or match["project"] not in (PROJECT, NUMBER) or match["region"] != REGION:
            self._refuse(404, "Project or location not found.")
        elif self.vertex.refused is not None:
            self._refuse(*self.vertex.refused)
        else:
            return match["rest"]
        return None

    def _refuse(self, code: int, message: str) -> None:
        self.answer(code, {"error": {"code": code, "message": message, "status": "REFUSED"}})


def _handler(vertex: Vertex) -> type[_Handler]:
    """Return the request handler class for this server's state."""
    return type("_Handler", (_Handler,), {"vertex": vertex})


def _chosen(entries: list[dict[str, Any]], chosen: str) -> list[dict[str, Any]]:
    since = re.search(r'timestamp>="([^"]+)"', chosen)
    task = re.search(r'task_name="([^"]+)"', chosen)
    return [
        entry for entry in entries
        if (since is None or entry["timestamp"] >= since[1])
        and (task is None or entry["resource"]["labels"]["task_name"] == task[1])
    ]  # fmt: skip
