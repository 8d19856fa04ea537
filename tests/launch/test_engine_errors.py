"""Errors of a Docker engine and a registry: the kind does not depend on words in user-defined names."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from docker import APIClient
from helpers.serving import JsonHandler, serving

from trainer.errors import TemporaryError, TrainerError, UsageError
from trainer.launch.checks import check_engine_image, check_registry_image
from trainer.launch.container import start_container, stop_container
from trainer.launch.image import ImageSource, push_image

WORDS = ("timeout", "not-found", "denied", "unauthorized", "authentication", "forbidden", "nvidia")
COMMIT = "0123456789ab"
CONTAINER = {
    "Id": "made",
    "State": {"Status": "running", "ExitCode": 0, "StartedAt": "2026-11-27T11:00:00Z", "FinishedAt": ""},
    "Config": {"Labels": {"trainer.run": "pets"}},
}


class Engine(ThreadingHTTPServer):
    """Engine with one image; requests that begin with a key of `answers` fail with its code and message."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, tuple[int, str]] = {}
        self.pushed = ""
        self.container: dict[str, Any] = {}
        self.dropped = ""
        """Begin of the requests that are answered by closing the connection."""


class Handler(JsonHandler):
    server: Engine

    def do_GET(self) -> None:  # noqa: N802
        """Respond to a request."""
        self.body()
        path = f"{self.command} /{self.path.split('/', 2)[2].partition('?')[0]}"
        if self.server.dropped and path.startswith(self.server.dropped):
            self.close_connection = True
            return None
        for begin, (code, message) in self.server.answers.items():
            if path.startswith(begin):
                return self.answer(code, {"message": message})
        if path.endswith("/push"):
            return self.answer(200, {"error": self.server.pushed, "errorDetail": {}})
        if path.startswith("GET /containers/") and not self.server.container:
            return self.answer(404, {"message": "No such container"})
        if path.startswith("GET /containers/"):
            return self.answer(200, self.server.container)
        config = {"Labels": {"org.opencontainers.image.revision": COMMIT}}
        return self.answer(200, {"Id": "made", "Size": 1, "Config": config})

    do_POST = do_DELETE = do_GET  # noqa: N815


@pytest.fixture
def engine() -> Iterator[Engine]:
    with serving(Engine()) as server:
        yield server


@pytest.fixture
def client(engine: Engine) -> Iterator[APIClient]:
    client = APIClient(f"http://127.0.0.1:{engine.server_port}", version="1.40")
    yield client
    client.close()


def error_of(client: APIClient, image: str, **host_config: Any) -> TrainerError:
    with pytest.raises(TrainerError) as raised:
        start_container(client, "pets", {"Image": image, "HostConfig": host_config})
    return raised.value


@pytest.mark.parametrize("word", WORDS)
def test_engine_errors_are_classified_independently_of_names(
    engine: Engine, client: APIClient, word: str
) -> None:
    image = f"host/{word}/not-found:x"
    for message in (f"No such image: {image}", f"failed to find image {image}: image not known"):
        engine.answers = {"GET /images/": (404, message)}
        assert "does not have this image" in str(error_of(client, image))
        assert check_engine_image(image, client).state == "wrong"
    engine.answers = {"GET /images/": (500, f"database is locked: {image} not found")}
    assert isinstance(error_of(client, image), TemporaryError)
    assert check_engine_image(image, client).state == "unknown"
    folder = f'invalid mount config for type "bind": bind source path does not exist: /data/{word}'
    engine.answers = {"POST /containers/create": (400, folder)}
    assert "A folder of the spec does not exist on the machine of the Docker engine" in str(
        error_of(client, image)
    )
    no_command = f'failed to create task: exec: "/opt/{word}": no such file, in https://{word}/nvidia'
    engine.answers = {"POST /containers/made/start": (500, no_command)}
    for config in ({}, {"DeviceRequests": [{}]}):
        assert "The Docker engine rejected the request" in str(error_of(client, image, **config))
    no_gpu = 'could not select device driver "" with capabilities: [[gpu]]'
    engine.answers = {"POST /containers/made/start": (500, no_gpu)}
    assert "The Docker engine has no GPU support" in str(error_of(client, image, DeviceRequests=[{}]))


def test_conflict_concerns_name_only_when_container_is_created(engine: Engine, client: APIClient) -> None:
    conflict = (409, 'The container name "/pets" is already in use')
    engine.answers = {"POST /containers/create": conflict}
    assert "A container of this name already exists" in str(error_of(client, "x:y"))
    engine.container = CONTAINER
    engine.answers = {"POST /containers/": (409, "removal of container pets is already in progress")}
    with pytest.raises(UsageError, match="The Docker engine rejected the request"):
        stop_container(client, "pets")


@pytest.mark.parametrize("request_line", ["POST /containers/create", "POST /containers/made/start"])
def test_lost_connection_while_a_container_starts_is_temporary(
    engine: Engine, client: APIClient, request_line: str
) -> None:
    engine.dropped = request_line
    assert isinstance(error_of(client, "x:y"), TemporaryError)


@pytest.mark.parametrize("word", WORDS)
def test_registry_errors_are_classified_independently_of_names(
    engine: Engine, client: APIClient, word: str
) -> None:
    for host in (f"{word}.example:5000", "host"):
        tag = f"{host}/{word}/trainer:cpu"
        lost = f'Get "https://{host}/v2/{word}/": dial tcp: lookup {host.partition(":")[0]}: no such host'
        refused = "denied: requested access to the resource is denied"
        for message, kind in (
            (lost, TemporaryError),
            (f"{tag}: the connection to {word}/trainer was reset", TemporaryError),
            (refused, UsageError),
            (f"unauthorized: {tag}", UsageError),
        ):
            engine.pushed = message
            with pytest.raises(kind, match="could not be pushed"):
                push_image(client, ImageSource(Path(), "", COMMIT, False), [tag], lambda line: None)
        for code, state in ((404, "wrong"), (401, "unknown"), (500, "unknown")):
            engine.answers = {"GET /distribution/": (code, f"{tag}: not-found {word}")}
            assert check_registry_image(tag, client).state == state
        engine.answers = {}
