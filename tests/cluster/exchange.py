"""One request to an API server and its answer, normalised: what `record.py` writes and the simulator is held to."""

import copy
import json
import re

VOLATILE = ("uid", "resourceVersion", "creationTimestamp", "selfLink", "time", "clusterIP", "clusterIPs")
# Users of the conversation: name and groups.
USERS = {
    "admin": ("admin", ["system:masters"]),
    "deployer": ("deployer", ["system:authenticated"]),
    "nobody": ("nobody", ["system:authenticated"]),
}
_UID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def play(ask, exchanges):
    """Ask each request in turn; `ask(user, method, path, content_type, body)` returns status and parsed answer."""
    uids, played = {}, []
    for exchange in exchanges:
        body = _with_uids(exchange["body"], uids)
        data = None if body is None else json.dumps(body).encode()
        status, answer = ask(exchange["user"], exchange["method"], exchange["path"], exchange["type"], data)
        uids[exchange["name"]] = answer.get("metadata", {}).get("uid")
        played.append({**exchange, "status": status, "answer": normalised(answer)})
    return played


def _with_uids(body, uids):
    """Put the uid that an earlier answer gave in place of `uid of NAME`."""
    if isinstance(body, dict):
        return {key: _with_uids(value, uids) for key, value in body.items()}
    return uids[body.removeprefix("uid of ")] if isinstance(body, str) and body.startswith("uid of ") else body


def normalised(answer):
    """Return an answer without what differs from run to run."""
    answer = copy.deepcopy(answer)
    _drop(answer)
    if "message" in answer:
        answer["message"] = _UID.sub("UID", answer["message"])
    return answer


def _drop(value):
    if isinstance(value, dict):
        for key in VOLATILE:
            value.pop(key, None)
        for part in value.values():
            _drop(part)
    elif isinstance(value, list):
        for part in value:
            _drop(part)
