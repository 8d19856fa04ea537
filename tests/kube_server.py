"""An API server of Kubernetes as far as kubectl needs one here: objects in memory, over real HTTP."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml
from serving import JsonHandler, serving

_KINDS = {
    "v1": {
        "services": "Service", "pods": "Pod", "events": "Event", "namespaces": "Namespace",
        "serviceaccounts": "ServiceAccount", "nodes": "Node",
    },
    "batch/v1": {"jobs": "Job", "cronjobs": "CronJob"},
    "jobset.x-k8s.io/v1alpha2": {"jobsets": "JobSet"},
    "authorization.k8s.io/v1": {"selfsubjectaccessreviews": "SelfSubjectAccessReview"},
}  # fmt: skip
_OF_NO_NAMESPACE = ("namespaces", "nodes", "selfsubjectaccessreviews")
_VERBS = ["create", "delete", "get", "list", "watch", "patch"]
_PATH = re.compile(
    r"/(?:api/v1|apis/(?P<group>[^/]+/v[0-9a-z]+))(?:/namespaces/(?P<namespace>[^/]+)(?=/[a-z]))?"
    r"/(?P<kind>[a-z]+)(?:/(?P<name>[^/]+)(?:/(?P<part>log))?)?$"
)


class Kube:
    """What the server holds, and what it is to refuse."""

    def __init__(self) -> None:
        self.namespaces = {"trainer"}
        self.has_jobsets = True
        self.forbidden: set[str] = set()
        """What `kubectl auth can-i` is told no for, as 'create jobs'."""
        self.objects: dict[tuple[str, str, str], dict[str, Any]] = {}
        """By namespace, kind as jobs, and name."""
        self.logs: dict[str, str] = {}
        """By pod."""
        self.refused: dict[str, tuple[int, str]] = {}
        """By kind: status and message of what can't be created; for a dry run too unless it says 'late '."""
        self.hidden: set[str] = set()
        """Kinds that may not be seen."""
        self.slow = ""
        """A kind whose creation is answered only once `go_on` says so; it is made before."""
        self.is_slow, self.go_on = threading.Event(), threading.Event()
        self.requests: list[str] = []

    def names(self, kind: str) -> list[str]:
        return [name for _, each, name in self.objects if each == kind]

    def put(self, kind: str, namespace: str, value: dict[str, Any]) -> None:
        value["metadata"]["namespace"] = namespace
        self.objects[namespace, kind, value["metadata"]["name"]] = value


@contextmanager
def kube_server(folder: Path) -> Iterator[tuple[Kube, Path]]:
    """Yield what the server holds, and a configuration by which kubectl finds it."""
    kube = Kube()
    config = folder / "kubeconfig.yaml"
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), _handler(kube))) as server:
        cluster = {"server": f"http://127.0.0.1:{server.server_port}"}
        told = {
            "apiVersion": "v1", "kind": "Config", "current-context": "here",
            "clusters": [{"name": "small", "cluster": cluster}],
            "contexts": [{"name": "here", "context": {"cluster": "small", "user": "me"}}],
            "users": [{"name": "me", "user": {}}],
        }  # fmt: skip
        config.write_text(yaml.safe_dump(told))
        yield kube, config


def _handler(kube: Kube) -> type[JsonHandler]:
    class Handler(JsonHandler, BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            kube.requests.append(f"GET {url.path}")
            if (found := _discovery(url.path, kube.has_jobsets)) is not None:
                self.answer(200, found)
                return
            asked = _PATH.match(url.path)
            if asked is None:
                self._status(404, "NotFound", "the server could not find the requested resource")
                return
            namespace, kind, name = asked["namespace"] or "", asked["kind"], asked["name"]
            if kind in kube.hidden:
                self._status(403, "Forbidden", f"{kind} is forbidden")
            elif kind == "namespaces" and name in kube.namespaces:
                self.answer(200, {"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": name}})
            elif name is None:
                self._list(namespace, kind, parse_qs(url.query).get("labelSelector", [""])[0])
            elif asked["part"] == "log":
                self.send(200, kube.logs.get(name, "").encode(), "text/plain")
            elif (value := kube.objects.get((namespace, kind, name))) is not None:
                self.answer(200, value)
            else:
                self._status(404, "NotFound", f'{kind} "{name}" not found')

        def do_POST(self) -> None:
            url = urlsplit(self.path)
            asked = _PATH.match(url.path)
            value = json.loads(self.body())
            is_dry = "dryRun" in url.query
            kube.requests.append(f"POST {url.path}{' dry' * is_dry}")
            assert asked is not None
            if asked["kind"] == "selfsubjectaccessreviews":
                self._review(value)
                return
            namespace, kind, name = asked["namespace"], asked["kind"], value["metadata"]["name"]
            status, message = kube.refused.get(kind, (0, ""))
            if namespace not in kube.namespaces:
                self._status(404, "NotFound", f'namespaces "{namespace}" not found')
            elif status and not (is_dry and message.startswith("late ")):
                self._status(status, {403: "Forbidden"}.get(status, "Invalid"), message)
            elif (namespace, kind, name) in kube.objects:
                self._status(409, "AlreadyExists", f'{kind}.batch "{name}" already exists')
            else:
                value["metadata"]["uid"] = f"uid-{name}"
                if not is_dry:
                    kube.put(kind, namespace, value)
                    if kind == kube.slow:
                        kube.is_slow.set()
                        kube.go_on.wait(20)
                self.answer(201, value)

        def do_PATCH(self) -> None:
            asked = _PATH.match(urlsplit(self.path).path)
            kube.requests.append(f"PATCH {urlsplit(self.path).path}")
            patch = json.loads(self.body())
            assert asked is not None
            value = kube.objects[asked["namespace"], asked["kind"], asked["name"]]
            value["metadata"] |= patch["metadata"]
            self.answer(200, value)

        def do_DELETE(self) -> None:
            asked = _PATH.match(urlsplit(self.path).path)
            kube.requests.append(f"DELETE {self.path}")
            self.body()
            assert asked is not None
            key = (asked["namespace"], asked["kind"], asked["name"])
            if kube.objects.pop(key, None) is None:
                self._status(404, "NotFound", f'{asked["kind"]} "{asked["name"]}" not found')
            else:
                self.answer(200, {"kind": "Status", "apiVersion": "v1", "status": "Success"})

        def _review(self, value: dict[str, Any]) -> None:
            wanted = value["spec"]["resourceAttributes"]
            what = "/".join(filter(None, (wanted["resource"], wanted.get("subresource"))))
            allowed = f"{wanted['verb']} {what}" not in kube.forbidden
            self.answer(201, value | {"status": {"allowed": allowed}})

        def _list(self, namespace: str, kind: str, selector: str) -> None:
            wanted = dict(each.split("=") for each in selector.split(",") if each)
            items = [
                value for (where, each, _), value in kube.objects.items()
                if (where, each) == (namespace, kind)
                and wanted.items() <= value["metadata"].get("labels", {}).items()
            ]  # fmt: skip
            version = next(version for version, kinds in _KINDS.items() if kind in kinds)
            self.answer(
                200,
                {
                    "kind": f"{_KINDS[version][kind]}List",
                    "apiVersion": version,
                    "metadata": {},
                    "items": items,
                },
            )

        def _status(self, code: int, reason: str, message: str) -> None:
            told = {"status": "Failure", "reason": reason, "message": message, "code": code}
            self.answer(code, {"kind": "Status", "apiVersion": "v1"} | told)

    return Handler


def _discovery(path: str, has_jobsets: bool) -> Any:
    kinds_of = {name: kinds for name, kinds in _KINDS.items() if has_jobsets or "jobset" not in name}
    if path == "/version":
        return {"major": "1", "minor": "32", "gitVersion": "v1.32.0"}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        groups = [_group(each) for each in kinds_of if "/" in each]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    if path.startswith("/openapi/v3"):
        return _openapi(path)
    for version, kinds in kinds_of.items():
        if path == ("/api/v1" if version == "v1" else f"/apis/{version}"):
            resources = [
                {"name": name, "singularName": kind.lower(), "kind": kind, "verbs": _VERBS,
                 "namespaced": name not in _OF_NO_NAMESPACE}
                for name, kind in kinds.items()
            ]  # fmt: skip
            return {"kind": "APIResourceList", "groupVersion": version, "resources": resources}
    return None


def _group(version: str) -> dict[str, Any]:
    name, _, number = version.partition("/")
    told = {"groupVersion": version, "version": number}
    return {"name": name, "versions": [told], "preferredVersion": told}


def _openapi(path: str) -> Any:
    """Return what says that the server itself looks at every field, and knows of dry runs."""
    places = {version: "api/v1" if version == "v1" else f"apis/{version}" for version in _KINDS}
    if path == "/openapi/v3":
        return {
            "paths": {each: {"serverRelativeURL": f"/openapi/v3/{each}?hash=1"} for each in places.values()}
        }
    version = next(version for version, place in places.items() if path == f"/openapi/v3/{place}")
    group, _, number = version.rpartition("/")
    asked = [
        {"name": name, "in": "query", "schema": {"type": "string"}} for name in ("dryRun", "fieldValidation")
    ]
    paths = {}
    for name, kind in _KINDS[version].items():
        gvk = {"group": group, "version": number, "kind": kind}
        patch = {"x-kubernetes-group-version-kind": gvk, "x-kubernetes-action": "patch", "parameters": asked}
        answers = {"responses": {"200": {"description": "OK"}}}
        paths[f"/{places[version]}/namespaces/{{namespace}}/{name}/{{name}}"] = {"patch": patch | answers}
    return {"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "v1.32.0"}, "paths": paths}
