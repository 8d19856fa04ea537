"""Kubernetes API discovery and error responses, in the form that kubectl reads.

The messages are those of k8s.io/apimachinery: NewNotFound, NewForbidden, NewAlreadyExists.
"""

from __future__ import annotations

from typing import Any

KINDS = {
    "v1": {
        "services": "Service", "pods": "Pod", "events": "Event", "namespaces": "Namespace",
        "serviceaccounts": "ServiceAccount", "nodes": "Node", "secrets": "Secret",
    },
    "batch/v1": {"jobs": "Job", "cronjobs": "CronJob"},
    "networking.k8s.io/v1": {"networkpolicies": "NetworkPolicy"},
    "jobset.x-k8s.io/v1alpha2": {"jobsets": "JobSet"},
    "kueue.x-k8s.io/v1beta1": {"localqueues": "LocalQueue", "workloads": "Workload"},
    "authorization.k8s.io/v1": {"selfsubjectaccessreviews": "SelfSubjectAccessReview"},
    "apiextensions.k8s.io/v1": {"customresourcedefinitions": "CustomResourceDefinition"},
}  # fmt: skip
OF_NO_NAMESPACE = ("namespaces", "nodes", "selfsubjectaccessreviews", "customresourcedefinitions")
_VERBS = ["create", "delete", "get", "list", "watch", "patch"]
_CODES = {"BadRequest": 400, "Forbidden": 403, "NotFound": 404, "AlreadyExists": 409, "Invalid": 422,
          "InternalError": 500, "ServiceUnavailable": 503, "Timeout": 504}  # fmt: skip


def version_of(resource: str) -> str:
    """Return the group and version of a resource, such as batch/v1 for jobs."""
    return next(version for version, kinds in KINDS.items() if resource in kinds)


def group_of(resource: str) -> str:
    return version_of(resource).rpartition("/")[0]


def qualified(resource: str) -> str:
    """Return the name of a resource in error messages, such as jobs.batch or pods."""
    return ".".join(filter(None, (resource, group_of(resource))))


def status_of(reason: str, message: str, resource: str = "", name: str = "") -> tuple[int, dict[str, Any]]:
    """Return the HTTP status and the body of an error."""
    details: dict[str, Any] = {
        "name": name,
        "group": group_of(resource) if resource else "",
        "kind": resource,
        "causes": [{"message": message, "field": "spec"}] if reason == "Invalid" else [],
    }
    body = {
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
        "reason": reason, "details": {key: value for key, value in details.items() if value},
        "code": _CODES[reason],
    }  # fmt: skip
    return _CODES[reason], body


def not_found(resource: str, name: str) -> tuple[int, dict[str, Any]]:
    return status_of("NotFound", f'{qualified(resource)} "{name}" not found', resource, name)


def already_exists(resource: str, name: str) -> tuple[int, dict[str, Any]]:
    return status_of("AlreadyExists", f'{qualified(resource)} "{name}" already exists', resource, name)


def forbidden(verb: str, resource: str, name: str, namespace: str) -> tuple[int, dict[str, Any]]:
    where = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
    target = f'{qualified(resource)} "{name}"' if name else qualified(resource)
    message = (
        f'{target} is forbidden: User "me" cannot {verb} resource "{resource}" '
        f'in API group "{group_of(resource)}" {where}'
    )
    return status_of("Forbidden", message, resource, name)


def discovery(path: str, absent: set[str]) -> Any:
    """Return the response to a discovery request, without the groups in `absent`, or None."""
    kinds_of = {version: kinds for version, kinds in KINDS.items() if version.partition("/")[0] not in absent}
    if path == "/version":
        return {"major": "1", "minor": "36", "gitVersion": "v1.36.0"}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        groups = [_group(version) for version in kinds_of if "/" in version]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    if path.startswith("/openapi/v3"):
        return _openapi(path)
    for version, kinds in kinds_of.items():
        if path == ("/api/v1" if version == "v1" else f"/apis/{version}"):
            resources = [
                {"name": name, "singularName": kind.lower(), "kind": kind, "verbs": _VERBS,
                 "namespaced": name not in OF_NO_NAMESPACE}
                for name, kind in kinds.items()
            ]  # fmt: skip
            return {"kind": "APIResourceList", "groupVersion": version, "resources": resources}
    return None


def _group(version: str) -> dict[str, Any]:
    name, _, number = version.partition("/")
    group_version = {"groupVersion": version, "version": number}
    return {"name": name, "versions": [group_version], "preferredVersion": group_version}


def _openapi(path: str) -> Any:
    """Return an OpenAPI document that declares server-side field validation and dry runs."""
    paths_of = {version: "api/v1" if version == "v1" else f"apis/{version}" for version in KINDS}
    if path == "/openapi/v3":
        return {
            "paths": {path: {"serverRelativeURL": f"/openapi/v3/{path}?hash=1"} for path in paths_of.values()}
        }
    version = next(version for version, suffix in paths_of.items() if path == f"/openapi/v3/{suffix}")
    group, _, number = version.rpartition("/")
    parameters = [
        {"name": name, "in": "query", "schema": {"type": "string"}} for name in ("dryRun", "fieldValidation")
    ]
    paths = {}
    for name, kind in KINDS[version].items():
        gvk = {"group": group, "version": number, "kind": kind}
        answers = {"responses": {"200": {"description": "OK"}}, "parameters": parameters}
        # Reviews can only be created. If kubectl finds no patch operation, it requests the CRDs.
        verb = "post" if group == "authorization.k8s.io" else "patch"
        action = {"x-kubernetes-group-version-kind": gvk, "x-kubernetes-action": verb}
        paths[f"/{paths_of[version]}/namespaces/{{namespace}}/{name}/{{name}}"] = {verb: action | answers}
    return {"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "v1.36.0"}, "paths": paths}
