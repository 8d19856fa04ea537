"""In-memory Kubernetes API server over HTTP, limited to what kubectl requests in these tests."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from helpers.kube_api import (
    KINDS,
    OF_NO_NAMESPACE,
    already_exists,
    discovery,
    forbidden,
    not_found,
    status_of,
    version_of,
)
from helpers.serving import JsonHandler, serving

_PATH = re.compile(
    r"/(?:api/v1|apis/(?P<group>[^/]+/v[0-9a-z]+))(?:/namespaces/(?P<namespace>[^/]+)(?=/[a-z]))?"
    r"/(?P<kind>[a-z]+)(?:/(?P<name>[^/]+)(?:/(?P<part>log))?)?$"
)
_BRIEF_SECONDS = 0.02


class Kube:
    """State of the server, and the requests it rejects."""

    def __init__(self) -> None:
        self.namespaces = {"trainer"}
        self.absent = {"kueue.x-k8s.io"}
        """API groups that are not installed."""
        self.denied = {"list customresourcedefinitions"}
        """Permissions that the user lacks, such as 'create jobs'; by default those not in the role edit."""
        self.objects: dict[tuple[str, str, str], dict[str, Any]] = {}
        """Objects by namespace, resource (such as jobs) and name."""
        self.logs: dict[str, str] = {}
        """Logs by pod."""
        self.outages = 0
        """Number of requests for jobs that still get a 503."""
        self.drops = 0
        """Number of followed logs that still break off while the container runs."""
        self.refused: dict[str, tuple[str, str]] = {}
        """Reason and message of rejected creations, by resource; with a message 'late ...' dry runs pass."""
        self.slow = ""
        """Resource whose creation is answered only after `go_on` is set; the object exists before."""
        self.is_slow, self.go_on = threading.Event(), threading.Event()
        self.requests: list[str] = []
        self._made = 0

    def names(self, kind: str) -> list[str]:
        return [name for _, resource, name in self.objects if resource == kind]

    def put(self, kind: str, namespace: str, value: dict[str, Any]) -> dict[str, Any]:
        """Store `value` with a UID and a creation timestamp, as a real server does."""
        self._made += 1
        name = value["metadata"]["name"]
        made = {"uid": f"uid-{name}", "creationTimestamp": f"2026-11-27T11:00:{self._made % 60:02}Z"}
        value["metadata"] = made | value["metadata"] | {"namespace": namespace}
        value = {"apiVersion": version_of(kind), "kind": KINDS[version_of(kind)][kind]} | value
        self.objects[namespace, kind, name] = value
        return value

    def may(self, verb: str, kind: str, part: str | None = None) -> bool:
        return f"{verb} {kind}{f'/{part}' if part else ''}" not in self.denied

    def remove(self, key: tuple[str, str, str]) -> bool:
        """Remove an object and its dependents; return whether it existed."""
        value = self.objects.pop(key, None)
        if value is None:
            return False
        for other, dependent in list(self.objects.items()):
            owners = dependent["metadata"].get("ownerReferences", [])
            if any(owner["uid"] == value["metadata"]["uid"] for owner in owners):
                self.remove(other)
        return True


@contextmanager
def kube_server(folder: Path) -> Iterator[tuple[Kube, Path]]:
    """Run a server; yield its state and the path of a kubeconfig for it."""
    kube = Kube()
    config = folder / "kubeconfig.yaml"
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), _handler(kube))) as server:
        cluster = {"server": f"http://127.0.0.1:{server.server_port}"}
        kubeconfig = {
            "apiVersion": "v1", "kind": "Config", "current-context": "here",
            "clusters": [{"name": "small", "cluster": cluster}],
            "contexts": [{"name": "here", "context": {"cluster": "small", "user": "me"}}],
            "users": [{"name": "me", "user": {}}],
        }  # fmt: skip
        config.write_text(yaml.safe_dump(kubeconfig))
        yield kube, config


class _Handler(JsonHandler, BaseHTTPRequestHandler):
    kube: Kube

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self.kube.requests.append(f"GET {url.path}")
        if (document := discovery(url.path, self.kube.absent)) is not None:
            self.answer(200, document)
        elif (match := _PATH.match(url.path)) is None:
            self.answer(*status_of("NotFound", "the server could not find the requested resource"))
        else:
            self._get(match, parse_qs(url.query))

    def _get(self, match: re.Match[str], query: dict[str, list[str]]) -> None:
        namespace, kind, name = match["namespace"] or "", match["kind"], match["name"] or ""
        verb = "get" if name else "list"
        if kind == "jobs" and self.kube.outages:
            self.kube.outages -= 1
            self.answer(*status_of("ServiceUnavailable", "the server is currently unable to handle it"))
        elif not self.kube.may(verb, kind, match["part"]):
            self.answer(*forbidden(verb, kind, name, namespace))
        elif kind == "namespaces" and name in self.kube.namespaces:
            self.answer(200, {"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": name}})
        elif not name:
            self._list(namespace, kind, query.get("labelSelector", [""])[0])
        elif (value := self.kube.objects.get((namespace, kind, name))) is None:
            self.answer(*not_found(kind, name))
        elif match["part"] == "log":
            self._log(value, query)
        else:
            self.answer(200, value)

    def do_POST(self) -> None:
        url = urlsplit(self.path)
        match = _PATH.match(url.path)
        value = json.loads(self.body())
        is_dry = "dryRun" in url.query
        self.kube.requests.append(f"POST {url.path}{' dry' * is_dry}")
        assert match is not None
        if match["kind"] == "selfsubjectaccessreviews" and self.kube.may("create", match["kind"]):
            self._review(value)
            return
        namespace, kind, name = match["namespace"] or "", match["kind"], value["metadata"].get("name", "")
        reason, message = self.kube.refused.get(kind, ("", ""))
        if not self.kube.may("create", kind):
            self.answer(*forbidden("create", kind, "", namespace))
        elif namespace not in self.kube.namespaces:
            self.answer(*not_found("namespaces", namespace))
        elif reason and not (is_dry and message.startswith("late ")):
            self.answer(*status_of(reason, message, kind, name))
        elif (namespace, kind, name) in self.kube.objects:
            self.answer(*already_exists(kind, name))
        else:
            value["metadata"]["uid"] = f"uid-{name}"
            if not is_dry:
                value = self.kube.put(kind, namespace, value)
                if kind == self.kube.slow:
                    self.kube.is_slow.set()
                    self.kube.go_on.wait(20)
            self.answer(201, value)

    def do_DELETE(self) -> None:
        match = _PATH.match(urlsplit(self.path).path)
        self.kube.requests.append(f"DELETE {self.path}")
        self.body()
        assert match is not None
        if not self.kube.may("delete", match["kind"]):
            self.answer(*forbidden("delete", match["kind"], match["name"], match["namespace"]))
        elif not self.kube.remove((match["namespace"], match["kind"], match["name"])):
            self.answer(*not_found(match["kind"], match["name"]))
        else:
            self.answer(200, {"kind": "Status", "apiVersion": "v1", "status": "Success"})

    def _review(self, value: dict[str, Any]) -> None:
        attributes = value["spec"]["resourceAttributes"]
        allowed = self.kube.may(attributes["verb"], attributes["resource"], attributes.get("subresource"))
        self.answer(201, value | {"status": {"allowed": allowed}})

    def _list(self, namespace: str, kind: str, selector: str) -> None:
        labels = dict(label.split("=") for label in selector.split(",") if label)
        items = [
            value for (owner, resource, _), value in self.kube.objects.items()
            if resource == kind and (owner == namespace or kind in OF_NO_NAMESPACE)
            and labels.items() <= value["metadata"].get("labels", {}).items()
        ]  # fmt: skip
        version = version_of(kind)
        head = {"kind": f"{KINDS[version][kind]}List", "apiVersion": version, "metadata": {}}
        self.answer(200, head | {"items": items})

    def _log(self, pod: dict[str, Any], query: dict[str, list[str]]) -> None:
        """Respond like API server and kubelet: an empty log without a state, an error before start."""
        name, container = pod["metadata"]["name"], query.get("container", ["trainer"])[0]
        if (waiting := _state(pod).get("waiting")) is not None:
            text = f'container "{container}" in pod "{name}" is waiting to start: {waiting["reason"]}'
            self.answer(*status_of("BadRequest", text))
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.end_headers()
        sent = 0
        while _state(pod):
            is_last = "running" not in _state(pod) or "follow" not in query
            lines = self.kube.logs.get(name, "").splitlines()
            for number, line in enumerate(lines[sent:], sent):
                stamp = f"2026-11-27T11:{number // 60:02}:{number % 60:02}.123456789Z"
                if stamp >= query.get("sinceTime", [""])[0]:
                    time_of = f"{stamp} " if "timestamps" in query else ""
                    self.wfile.write(f"{time_of}{line}\n".encode())
            sent = len(lines)
            if is_last or (sent and self.kube.drops):
                self.kube.drops -= not is_last
                return
            time.sleep(_BRIEF_SECONDS)
            pod = self.kube.objects.get((pod["metadata"]["namespace"], "pods", name), {})


def _handler(kube: Kube) -> type[_Handler]:
    """Return the request handler class for this server's state."""
    return type("_Handler", (_Handler,), {"kube": kube})


def _state(pod: dict[str, Any]) -> dict[str, Any]:
    """Return the state of the pod's only container."""
    statuses = pod.get("status", {}).get("containerStatuses", [{}])
    return dict(statuses[0].get("state", {}))
