"""Parsing of kubectl errors by their format and reason, not by names that users choose."""

from __future__ import annotations

import pytest

from trainer.errors import TemporaryError
from trainer.launch.kubectl import KubectlError, parse_failure

LOG = (
    "E1130 08:40:55.876437    6948 memcache.go:265] couldn't get current server API group list: "
    'Get "https://x": net/http: TLS handshake timeout\n'
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('Error from server (NotFound): jobs.batch "timeout" not found', "NotFound"),
        (LOG + 'Error from server (NotFound): jobs.batch "eof" not found', "NotFound"),
        ('Error from server (Forbidden): jobs.batch is forbidden: User "EOF was refused"', "Forbidden"),
        ('Error from server (AlreadyExists): error when creating "STDIN": jobs.batch "eof" already exists',
         "AlreadyExists"),
        ('error: the server doesn\'t have a resource type "jobsets"', "NoKind"),
        ('error: resource mapping not found for name: "eof" namespace: "timeout" from "STDIN": no matches '
         'for kind "JobSet" in version "v1"\nensure CRDs are installed first', "NoKind"),
        ("error: current-context is not set", "NoContext"),
        ('error: context "timeout" does not exist', "NoContext"),
        ("Error in configuration: context was not found for specified context: timeout", "NoContext"),
        ("error: You must be logged in to the server (the server has asked for the timeout)",
         "Unauthorized"),
        ("Unable to connect to the server: x509: certificate signed by unknown authority", "Unauthorized"),
        ('The Job "timeout" is invalid: spec.template: Invalid value: "timeout": field is immutable', ""),
        ("", ""),
    ],
)  # fmt: skip
def test_reason_is_parsed_independently_of_names(text: str, reason: str) -> None:
    error = parse_failure("get", text)
    assert isinstance(error, KubectlError)
    assert (error.reason, error.exit_code) == (reason, 2)


@pytest.mark.parametrize(
    "text",
    [
        "The connection to the server 127.0.0.1:9 was refused - did you specify the right host or port?",
        LOG + "Unable to connect to the server: net/http: TLS handshake timeout",
        "Unable to connect to the server: dial tcp: lookup nowhere.invalid: no such host",
        'error: error validating "STDIN": error validating data: failed to download openapi: Get '
        '"http://127.0.0.1:9/openapi/v2?timeout=32s": dial tcp 127.0.0.1:9: connect: connection refused; ',
        'error: unable to recognize "STDIN": Get "http://127.0.0.1:9/api?timeout=32s": dial tcp: refused',
        "Error from server (ServiceUnavailable): the server is currently unable to handle the request",
        "Error from server (TooManyRequests): notfound",
        "Error from server: etcdserver: request timed out",
    ],
)
def test_connection_and_server_failures_are_temporary(text: str) -> None:
    assert isinstance(parse_failure("create", text), TemporaryError)
