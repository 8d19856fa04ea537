"""Errors of kubectl as exceptions, with the reason from the API server.

kubectl prints responses of the API server in fixed forms (`StandardErrorMessage` in k8s.io/kubectl). The rest
of the text quotes names that users chose, so only the form and the reason are parsed.
"""

from __future__ import annotations

import re

from trainer.errors import TemporaryError, UsageError

NOT_FOUND = "NotFound"
ALREADY_EXISTS = "AlreadyExists"
FORBIDDEN = "Forbidden"
BAD_REQUEST = "BadRequest"
NO_KIND = "NoKind"
"""Not a reason of the API server: the kind does not exist, for example without the CRD of JobSet or Kueue."""
_NO_CONTEXT = "NoContext"
_UNAUTHORIZED = "Unauthorized"
_UNREACHABLE = "Unreachable"
_TEMPORARY = (
    _UNREACHABLE,
    "ServiceUnavailable",
    "Timeout",
    "ServerTimeout",
    "TooManyRequests",
    "InternalError",
)
_LOG = re.compile(r"[IWEF]\d{4} \d\d:\d\d:\d\d\.")
"""Prefix of the lines of kubectl's own log."""
_FORMS = (
    (re.compile(r"Error from server \((?P<reason>\w+)\): "), ""),
    (re.compile(r"Error from server: "), _UNREACHABLE),  # such as a timeout of etcd: no reason
    (re.compile(r"error: You must be logged in to the server "), _UNAUTHORIZED),
    (re.compile(r"Unable to connect to the server: (x509|tls|remote error|getting credentials)\b"),
     _UNAUTHORIZED),
    (re.compile(r"Unable to connect to the server: "), _UNREACHABLE),
    (re.compile(r"The connection to the server \S+ was refused"), _UNREACHABLE),
    # Printed while kubectl looks up the schema of an object from standard input.
    (re.compile(r'error: (?:error validating|unable to recognize) "STDIN": (?:[^"]*: )?Get "'), _UNREACHABLE),
    (re.compile(r"error: the server doesn't have a resource type "), NO_KIND),
    (re.compile(r'error: resource mapping not found for name: "[^"]*" namespace: "[^"]*" from "STDIN": '),
     NO_KIND),
    (re.compile(r'error: unable to recognize "STDIN": no matches for kind '), NO_KIND),
    (re.compile(r"error: current-context is not set"), _NO_CONTEXT),
    (re.compile(r'error: context "[^"]*" does not exist'), _NO_CONTEXT),
    (re.compile(r"(error|Error) in configuration: context was not found"), _NO_CONTEXT),
)  # fmt: skip
_GET_CREDENTIALS = "`gcloud container clusters get-credentials CLUSTER`"
_ADVICE = {
    _NO_CONTEXT: f"kubectl has no such cluster in its configuration; {_GET_CREDENTIALS} adds it, --context "
    "names another",
    _UNAUTHORIZED: f"The cluster doesn't accept kubectl's credentials; {_GET_CREDENTIALS} gets new ones",
    _UNREACHABLE: "The cluster can't be reached",
    NO_KIND: "The cluster doesn't have this kind of object",
}


class KubectlError(UsageError):
    """Error reported by kubectl or the API server, with the reason from the server's status."""

    def __init__(self, message: str, reason: str, line: str) -> None:
        super().__init__(message)
        self.reason = reason
        """Reason such as NotFound or Forbidden; empty if unknown."""
        self.line = line
        """The line that kubectl printed."""


def parse_failure(verb: str, text: str) -> KubectlError | TemporaryError:
    """Return the error for the output `text` of a failed `kubectl VERB`."""
    reason, line = _read(text)
    advice = _ADVICE.get(reason)
    if reason in _TEMPORARY:
        return TemporaryError(f"{advice or 'The cluster has a temporary problem'}.", received=line)
    return KubectlError(
        f"{advice or f'The cluster refuses it (kubectl {verb})'}. Received: {line}", reason, line
    )


def _read(text: str) -> tuple[str, str]:
    """Return the reason in `text`, empty if there is none, and the line of the error."""
    lines = [line for line in text.splitlines() if line.strip() and not _LOG.match(line)]
    for line in lines:
        for form, reason in _FORMS:
            if found := form.match(line):
                return found.groupdict().get("reason") or reason, line
    return "", lines[-1] if lines else "nothing"
