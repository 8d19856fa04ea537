"""Cloud Storage client, with the credentials and the proxy of the environment and one connection pool."""

from __future__ import annotations

import requests
from google.auth import exceptions as auth
from google.cloud import storage

from trainer.compat import http_session
from trainer.errors import UsageError
from trainer.storage.proxies import require_proxy

_CONNECTIONS = 64
_NO_CREDENTIALS = "default credentials were not found"
"""Part of the google.auth error message if there are no credentials at all."""


def make_client() -> storage.Client:
    """Return a client with application default credentials, or an anonymous client if there are none.

    The client library itself honours STORAGE_EMULATOR_HOST. Raises UsageError if the credentials file or the
    proxy is invalid.
    """
    try:
        # Objects need no project, and user credentials often have none.
        client = storage.Client(project="none")
    except auth.DefaultCredentialsError as error:
        if _NO_CREDENTIALS not in str(error):
            raise UsageError(
                "The credentials in the file of GOOGLE_APPLICATION_CREDENTIALS are invalid.",
                "Correct the variable, or unset it to use a public bucket.",
                received=f"{str(error)[:200]}",
            ) from None
        # A public bucket needs no credentials.
        client = storage.Client.create_anonymous_client()
    # Proxies and certificates are the same for every request. Reading them from the environment each time
    # took a sixth of the time of a small request.
    session = http_session(client)
    require_proxy(session, client.api_endpoint)
    settings = session.merge_environment_settings(client.api_endpoint, {}, None, None, None)
    session.proxies, session.verify, session.trust_env = settings["proxies"], settings["verify"], False
    adapter = requests.adapters.HTTPAdapter(pool_connections=_CONNECTIONS, pool_maxsize=_CONNECTIONS)
    for scheme in ("https://", "http://"):
        session.mount(scheme, adapter)
    return client
