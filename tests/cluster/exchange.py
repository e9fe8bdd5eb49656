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
_STORED_AT = re.compile(r"(ResourceVersion in [a-z ]+)\([0-9]+\)")
_REFERENCE = re.compile(r"(uid|resourceVersion) of ([a-z-]+)")


def play(ask, exchanges):
    """Ask each request in turn; `ask(user, method, path, content_type, body)` returns status and parsed answer."""
    answers, played = {}, []
    for exchange in exchanges:
        body = _filled(exchange["body"], answers)
        data = None if body is None else json.dumps(body).encode()
        status, answer = ask(exchange["user"], exchange["method"], exchange["path"], exchange["type"], data)
        answers[exchange["name"]] = answer
        played.append({**exchange, "status": status, "answer": normalised(answer)})
    return played


def _filled(body, answers):
    """Put what an earlier answer's metadata gave in place of `uid of NAME` and `resourceVersion of NAME`."""
    if isinstance(body, dict):
        return {key: _filled(value, answers) for key, value in body.items()}
    found = _REFERENCE.fullmatch(body) if isinstance(body, str) else None
    return answers[found[2]]["metadata"][found[1]] if found else body


def normalised(answer):
    """Return an answer without what differs from run to run."""
    answer = copy.deepcopy(answer)
    _drop(answer)
    if "message" in answer:
        answer["message"] = _STORED_AT.sub(r"\1(N)", _UID.sub("UID", answer["message"]))
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
