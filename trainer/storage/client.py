"""The client of Google Cloud Storage.

In: the credentials and the proxy of the environment. Out: a client with one pool of connections.
"""

from __future__ import annotations

import requests
from google.auth import exceptions as auth
from google.cloud import storage

from trainer.exits import UsageError
from trainer.storage.proxies import require_proxy

_CONNECTIONS = 64
_NO_CREDENTIALS = "default credentials were not found"
"""What google.auth says where there are none at all."""


def make_client() -> storage.Client:
    """Return a client with the application default credentials, or without any where there are none.

    The client library itself honours STORAGE_EMULATOR_HOST.
    """
    try:
        # Objects need no project, and a person's own credentials often name none.
        client = storage.Client(project="none")
    except auth.DefaultCredentialsError as error:
        if _NO_CREDENTIALS not in str(error):
            raise UsageError(
                "The credentials that GOOGLE_APPLICATION_CREDENTIALS names can't be used; mend or unset it "
                f"for a public bucket. Received: {str(error)[:200]}"
            ) from None
        # A public bucket needs no credentials.
        client = storage.Client.create_anonymous_client()
    # What the environment says of proxies and certificates is the same for each request: to look there every
    # time took a sixth of a small one.
    session = client._http
    require_proxy(session, client._connection.API_BASE_URL)
    settings = session.merge_environment_settings(client._connection.API_BASE_URL, {}, None, None, None)
    session.proxies, session.verify, session.trust_env = settings["proxies"], settings["verify"], False
    adapter = requests.adapters.HTTPAdapter(pool_connections=_CONNECTIONS, pool_maxsize=_CONNECTIONS)
    for scheme in ("https://", "http://"):
        session.mount(scheme, adapter)
    return client
