"""A small API server over HTTP: server-side apply, dry runs, conflicts, roles, and a Deployment controller.

It knows what deploying a server takes and no more. What it answers is held to what a real kube-apiserver answered
(`record.py`, tests/data/kubernetes). Its controller moves on with each look at a Deployment, so nothing waits for a
clock: the first look after a change finds the controller behind, the second the old conditions, the third the outcome.
"""

import contextlib
import copy
import json
import re
import threading
import uuid
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

KINDS = {  # resource: (group, kind)
    "namespaces": ("", "Namespace"),
    "serviceaccounts": ("", "ServiceAccount"),
    "configmaps": ("", "ConfigMap"),
    "services": ("", "Service"),
    "networkpolicies": ("networking.k8s.io", "NetworkPolicy"),
    "poddisruptionbudgets": ("policy", "PodDisruptionBudget"),
    "deployments": ("apps", "Deployment"),
    "roles": ("rbac.authorization.k8s.io", "Role"),
    "rolebindings": ("rbac.authorization.k8s.io", "RoleBinding"),
}
LISTS = {  # the fields that tell the entries of a list apart; any other list is one value
    "containers": ("name",),
    "initContainers": ("name",),
    "env": ("name",),
    "volumes": ("name",),
    "volumeMounts": ("mountPath",),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
}
PORTS = {"Deployment": ("containerPort", "protocol"), "Service": ("port", "protocol")}
ATOMIC = {"labelSelector", "podSelector"}
SPEC_FIELDS = {
    *("replicas", "selector", "template", "strategy", "minReadySeconds", "revisionHistoryLimit", "paused"),
    "progressDeadlineSeconds",
}
CONTAINER_DEFAULTS = {
    "imagePullPolicy": "Always",
    "resources": {},
    "terminationMessagePath": "/dev/termination-log",
    "terminationMessagePolicy": "File",
}
_PATH = re.compile(r"/(?:api/v1|apis/([a-z0-9.]+)/v1)(?:/namespaces/([a-z0-9-]+))?/([a-z]+)(?:/([a-z0-9-]+))?")


class Refusal(Exception):
    def __init__(self, code, reason, message, details=None):
        self.status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message}
        self.status |= {"code": code} | ({"reason": reason} if reason else {})
        self.status |= {"details": details} if details is not None else {}
        self.code = code


@dataclass
class ApiServer:
    """The whole of a cluster that a test needs.

    Attributes:
        users: Token to name and groups.
        bad_images: Images whose pods never become ready.
        refused_pods: Why admission refuses every pod, as for a quota or Pod Security; empty for not at all.
        webhook: Called with each object that is to be stored and whether it is a dry run; may change it.
        outages: How many requests are answered with 503 before one is heard.
    """

    users: dict = field(default_factory=lambda: {"admin": ("admin", ["system:masters"])})
    bad_images: set = field(default_factory=set)
    refused_pods: str = ""
    webhook: object = None
    outages: int = 0
    objects: dict = field(default_factory=dict)
    pods: dict = field(default_factory=dict)  # (namespace, name) of a Deployment: templates of the pods that serve
    requests: list = field(default_factory=list)
    looks: dict = field(default_factory=dict)
    versions: int = 1  # as etcd before anything is stored
    lock: threading.RLock = field(default_factory=threading.RLock)

    def __enter__(self):
        simulator = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # one write for head and body: two would wait for the client's delayed acknowledgement

            def answer(self):
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length) if length else None
                token = self.headers.get("Authorization", "").removeprefix("Bearer ")
                status, answer = simulator.ask(token, self.command, self.path, self.headers.get("Content-Type"), body)
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PATCH = do_DELETE = answer

            def log_message(self, *arguments):
                """Tests read `requests` instead."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_port}"

    def ask(self, token, method, target, content_type, body):
        """Answer one request: status and document."""
        # A real one decides about one object at a time. Of these alone two writers come at once here; elsewhere a
        # webhook asks back while its own request is under way.
        with self.lock if "/configmaps/" in target else contextlib.nullcontext():
            return self._answer(token, method, target, content_type, body)

    def _answer(self, token, method, target, content_type, body):
        self.requests.append((method, target))
        try:
            if self.outages:
                self.outages -= 1
                raise Refusal(503, "ServiceUnavailable", "the server is currently unable to handle the request")
            if token not in self.users:
                raise Refusal(401, "Unauthorized", "Unauthorized")
            return self._route(*self.users[token], method, target, content_type, body and json.loads(body))
        except Refusal as refusal:
            return refusal.code, refusal.status

    def _route(self, user, groups, method, target, content_type, body):
        url = urlsplit(target)
        found = _PATH.fullmatch(url.path)
        if not found or found[3] not in KINDS or KINDS[found[3]][0] != (found[1] or ""):
            raise Refusal(404, "NotFound", "the server could not find the requested resource")
        _, namespace, resource, name = found.groups()
        group, kind = KINDS[resource]
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        verb = {"GET": "get", "POST": "create", "PATCH": "patch", "DELETE": "delete"}[method]
        where = _Where(namespace, resource, name or body["metadata"]["name"], group, kind)
        self._authorize(user, groups, verb, where)
        live = self.objects.get(where.key)
        if method in ("GET", "DELETE") and live is None:
            raise Refusal(404, "NotFound", f'{where.resource_group} "{where.name}" not found', where.details)
        if method == "GET":
            if kind == "Deployment":
                self._reconcile(where, live)
            return 200, live
        if method == "DELETE":
            return 200, self._delete(where, live, body or {})
        if method == "POST":
            stored = self._stored(where, copy.deepcopy(body), None, [_entry("unknown", "Update", body, kind)])
            self.objects[where.key] = stored
            return 201, stored
        if content_type == "application/merge-patch+json":
            if live is None:
                raise Refusal(404, "NotFound", f'{where.resource_group} "{where.name}" not found', where.details)
            _require_version(where, live, body.get("metadata", {}))
            return 200, self._edit(where, live, body, query["fieldManager"])
        if content_type != "application/apply-patch+yaml":
            raise Refusal(415, "UnsupportedMediaType", "415: Unsupported Media Type", {})
        if live is None:
            self._authorize(user, groups, "create", where)
        return self._apply(where, live, body, query)

    def _authorize(self, user, groups, verb, where):
        if "system:masters" in groups:
            return
        for binding in self._all("rolebindings", where.namespace):
            if not any(subject["name"] == user for subject in binding["subjects"]):
                continue
            role = self.objects[where.namespace, "roles", binding["roleRef"]["name"]]
            for rule in role["rules"]:
                named = "resourceNames" not in rule or where.name in rule["resourceNames"]
                if (
                    where.group in rule["apiGroups"]
                    and where.resource in rule["resources"]
                    and verb in rule["verbs"]
                    and named
                ):
                    return
        raise Refusal(
            403,
            "Forbidden",
            f'{where.resource_group} "{where.name}" is forbidden: User "{user}" cannot {verb} resource '
            f'"{where.resource}" in API group "{where.group}" in the namespace "{where.namespace}"',
            where.details,
        )

    def _all(self, resource, namespace):
        return [it for (space, kind, _), it in self.objects.items() if (space, kind) == (namespace, resource)]

    def _apply(self, where, live, config, query):
        manager = query.get("fieldManager", "")
        if not manager:
            cause = {"reason": "FieldValueRequired", "field": "fieldManager"}
            cause["message"] = "Required value: is required for apply patch"
            message = f'PatchOptions.meta.k8s.io "" is invalid: fieldManager: {cause["message"]}'
            details = {"group": "meta.k8s.io", "kind": "PatchOptions", "causes": [cause]}
            raise Refusal(422, "Invalid", message, details)
        if config["metadata"]["name"] != where.name:
            theirs = config["metadata"]["name"]
            message = f"the name of the object ({theirs}) does not match the name on the URL ({where.name})"
            raise Refusal(400, "BadRequest", message)
        if (None, "namespaces", where.namespace) not in self.objects:
            details = {"name": where.namespace, "kind": "namespaces"}
            raise Refusal(404, "NotFound", f'namespaces "{where.namespace}" not found', details)
        unknown = sorted(set(config.get("spec", {})) - SPEC_FIELDS) if where.kind == "Deployment" else []
        if unknown:
            message = f"failed to create typed patch object: .spec.{unknown[0]}: field not declared in schema"
            raise Refusal(500, None, message)
        if live is None and "uid" in config["metadata"]:
            message = f"uid mismatch: the provided object specified uid {config['metadata']['uid']}, and no existing "
            raise _not_fulfilled(where, f"{message}object was found", where.details)
        fields = _fields(config, where.kind)
        others, mine = [], set()
        for entry in live["metadata"]["managedFields"] if live else []:
            owned = _paths(entry["fieldsV1"])
            if (entry["manager"], entry["operation"]) == (manager, "Apply"):
                mine = owned
            else:
                others.append((entry, owned))
        conflicts = [
            (entry, path)
            for entry, owned in others
            for path in owned & fields
            if path[-1] != "." and _value(live, path) != _value(config, path)
        ]
        if conflicts and query.get("force") != "true":
            raise _conflict(conflicts)
        lost = {(id(entry), path) for entry, path in conflicts}
        others = [(entry, {path for path in owned if (id(entry), path) not in lost}) for entry, owned in others]
        merged = _merged(copy.deepcopy(live), config, where.kind) if live else copy.deepcopy(config)
        theirs = {path for _, owned in others for path in owned}
        # Whole entries of lists first: without the fields that name it, an entry could no longer be found.
        for path in sorted(mine - fields - theirs, key=lambda path: (path[-1] != ".", -len(path))):
            _remove(merged, path)
        entries = [{**entry, "fieldsV1": _tree(owned)} for entry, owned in others if owned]
        if fields:
            entries.append(_entry(manager, "Apply", config, where.kind))
        if live:
            _require_version(where, live, config["metadata"])
        stored = self._stored(where, merged, live, entries, dry_run="dryRun" in query)
        if "dryRun" not in query:
            self.objects[where.key] = stored
        return 200 if live else 201, stored

    def _edit(self, where, live, patch, manager):
        edited = _merge_patched(copy.deepcopy(live), patch)
        before, after = _fields(live, where.kind), _fields(edited, where.kind)
        touched = {path for path in after if path not in before or _value(live, path) != _value(edited, path)}
        entries = []
        for entry in live["metadata"]["managedFields"]:
            kept = _paths(entry["fieldsV1"]) - touched
            if kept and (entry["manager"], entry["operation"]) != (manager, "Update"):
                entries.append({**entry, "fieldsV1": _tree(kept)})
        entry = {"manager": manager, "operation": "Update", "apiVersion": live["apiVersion"], "fieldsType": "FieldsV1"}
        entries.append({**entry, "fieldsV1": _tree(touched)})
        self.objects[where.key] = self._stored(where, edited, live, entries)
        return self.objects[where.key]

    def _stored(self, where, it, live, entries, *, dry_run=False):
        """Give an object what a server gives it, after admission and validation."""
        if self.webhook:
            it = self.webhook(it, dry_run)
        metadata = it["metadata"]
        metadata["managedFields"] = sorted(entries, key=lambda entry: (entry["operation"], entry["manager"]))
        if where.namespace:
            metadata["namespace"] = where.namespace
        if where.kind == "Deployment":
            pod = it["spec"]["template"]["spec"]
            pod["serviceAccount"] = pod["serviceAccountName"]
            for container in pod["containers"]:
                for key, value in CONTAINER_DEFAULTS.items():
                    container.setdefault(key, copy.deepcopy(value))
            if it["spec"]["replicas"] < 0:
                value = f"Invalid value: {it['spec']['replicas']}: must be greater than or equal to 0"
                cause = {"reason": "FieldValueInvalid", "message": value, "field": "spec.replicas"}
                details = {"name": where.name, "group": "apps", "kind": "Deployment", "causes": [cause]}
                message = f'Deployment.apps "{where.name}" is invalid: spec.replicas: {value}'
                raise Refusal(422, "Invalid", message, details)
        if where.kind in ("Deployment", "NetworkPolicy", "PodDisruptionBudget"):
            changed = live is not None and live["spec"] != it["spec"]
            metadata["generation"] = (live["metadata"]["generation"] if live else 1) + changed
            if (changed or not live) and not dry_run:
                self.looks[where.key] = 0
        if where.kind == "Service":
            it["spec"].setdefault("clusterIP", "10.0.0.7")
        default = {"Deployment": {}, "Service": {"loadBalancer": {}}, "PodDisruptionBudget": {}}.get(where.kind)
        if default is not None:
            it.setdefault("status", default)
        metadata["uid"] = live["metadata"]["uid"] if live else str(uuid.uuid4())
        metadata["creationTimestamp"] = "2026-01-01T00:00:00Z"
        metadata["resourceVersion"] = live["metadata"]["resourceVersion"] if live else "0"
        if it != live and not dry_run:
            self.versions += 1
            metadata["resourceVersion"] = str(self.versions)
        return it

    def _delete(self, where, live, options):
        uid, wanted = live["metadata"]["uid"], options.get("preconditions", {}).get("uid")
        version = live["metadata"]["resourceVersion"]
        read = options.get("preconditions", {}).get("resourceVersion", version)
        details = {"name": where.name, "group": where.group, "kind": where.kind}
        if wanted not in (None, uid):
            message = f"the UID in the precondition ({wanted}) does not match the UID in record ({uid}). "
            message += "The object might have been deleted and then recreated"
            raise _not_fulfilled(where, message, details)
        if read != version:
            message = f"the ResourceVersion in the precondition ({read}) does not match the ResourceVersion in record "
            raise _not_fulfilled(where, f"{message}({version}). The object might have been modified", details)
        del self.objects[where.key]
        self.pods.pop((where.namespace, where.name), None)
        details = {**where.details, "uid": uid}
        return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}

    def _reconcile(self, where, live):
        """Move a Deployment's status on by one look."""
        self.looks[where.key] = look = self.looks.get(where.key, 0) + 1
        if look in (2, 3):  # its status is stored, too
            self.versions += 1
            live["metadata"]["resourceVersion"] = str(self.versions)
        generation, wanted = live["metadata"]["generation"], live["spec"]["replicas"]
        serving = self.pods.setdefault((where.namespace, where.name), [])
        status = live["status"]
        if look == 2:
            status |= {"observedGeneration": generation, "replicas": max(len(serving), 1), "updatedReplicas": 0}
            status |= {"availableReplicas": len(serving), "unavailableReplicas": 1}
        if look != 3:
            return
        stamp = f"generation {generation}"
        template = live["spec"]["template"]
        images = {it["image"] for it in template["spec"]["containers"]}
        if self.refused_pods:
            condition = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate"}
            status["conditions"] = [{**condition, "message": self.refused_pods, "lastUpdateTime": stamp}]
        elif images & self.bad_images:
            message = f'ReplicaSet "{where.name}-1" has timed out progressing.'
            condition = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}
            status["conditions"] = [{**condition, "message": message, "lastUpdateTime": stamp}]
            status |= {"replicas": len(serving) + 1, "updatedReplicas": 1, "availableReplicas": len(serving)}
        else:
            serving[:] = [copy.deepcopy(template)] * wanted
            condition = {"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"}
            status["conditions"] = [{**condition, "lastUpdateTime": stamp}]
            status |= dict.fromkeys(("replicas", "updatedReplicas", "readyReplicas", "availableReplicas"), wanted)
            status.pop("unavailableReplicas", None)


@dataclass(frozen=True)
class _Where:
    namespace: str | None
    resource: str
    name: str
    group: str
    kind: str

    @property
    def key(self):
        return self.namespace if self.resource != "namespaces" else None, self.resource, self.name

    @property
    def resource_group(self):
        return f"{self.resource}.{self.group}" if self.group else self.resource

    @property
    def details(self):
        return {"name": self.name, **({"group": self.group} if self.group else {}), "kind": self.resource}


def _not_fulfilled(where, why, details):
    of = f"{details['kind']}.{where.group}" if where.group else details["kind"]
    return Refusal(409, "Conflict", f'Operation cannot be fulfilled on {of} "{where.name}": {why}', details)


def _require_version(where, live, wanted):
    """Refuse to go over another version of an object than the one that was read."""
    if wanted.get("resourceVersion", "0") not in ("0", live["metadata"]["resourceVersion"]):
        why = "the object has been modified; please apply your changes to the latest version and try again"
        raise _not_fulfilled(where, why, where.details)
    if wanted.get("uid", live["metadata"]["uid"]) != live["metadata"]["uid"]:
        value = f'Invalid value: "{wanted["uid"]}": field is immutable'
        cause = {"reason": "FieldValueInvalid", "message": value, "field": "metadata.uid"}
        details = {"name": where.name, "group": where.group, "kind": where.kind, "causes": [cause, cause]}
        of = f"{where.kind}.{where.group}" if where.group else where.kind
        raise Refusal(422, "Invalid", f'{of} "{where.name}" is invalid: metadata.uid: {value}', details)


def _entry(manager, operation, config, kind):
    entry = {"manager": manager, "operation": operation, "apiVersion": config["apiVersion"], "fieldsType": "FieldsV1"}
    return {**entry, "fieldsV1": _tree(_fields(config, kind))}


def _conflict(conflicts):
    causes, messages = [], {}
    owners = sorted({id(entry): entry for entry, _ in conflicts}.values(), key=lambda entry: entry["manager"])
    for entry, path in sorted(conflicts, key=lambda it: _spelled(it[1])):
        using = f" using {entry['apiVersion']}" if entry["operation"] == "Update" else ""
        owner = f'"{entry["manager"]}"{using}'
        causes.append({"reason": "FieldManagerConflict", "message": f"conflict with {owner}", "field": _spelled(path)})
        messages.setdefault(id(entry), (owner, []))[1].append(_spelled(path))
    if len(causes) == 1:
        text = f"Apply failed with 1 conflict: {causes[0]['message']}: {causes[0]['field']}"
    else:
        parts = [messages[id(entry)] for entry in owners]
        lines = [f"conflicts with {owner}:\n" + "\n".join(f"- {it}" for it in paths) for owner, paths in parts]
        text = f"Apply failed with {len(causes)} conflicts: " + "\n".join(lines)
    return Refusal(409, "Conflict", text, {"causes": causes})


def _spelled(path):
    text = ""
    for step in path:
        if step.startswith("k:"):
            keys = ",".join(f"{key}={json.dumps(value)}" for key, value in json.loads(step[2:]).items())
            text += f"[{keys}]"
        else:
            text += f".{step[2:]}"
    return text


def _keys(path, kind):
    """The key fields of the list at a path; None for one that is a single value."""
    name = path[-1][2:]
    return PORTS.get(kind) if name == "ports" and kind != "NetworkPolicy" else LISTS.get(name)


def _is_atomic(path, kind):
    return path[-1][2:] in ATOMIC or (path == ("f:spec", "f:selector") and kind != "Service")


def _element(keys, value):
    return "k:" + json.dumps({key: value[key] for key in sorted(keys)}, separators=(",", ":"))


def _fields(config, kind):
    """The paths that a configuration sets, as FieldsV1 names them."""
    found = set()

    def walk(value, path):
        if isinstance(value, dict) and value and not (path and _is_atomic(path, kind)):
            for key, part in value.items():
                walk(part, (*path, f"f:{key}"))
        elif isinstance(value, list) and value and _keys(path, kind):
            for part in value:
                here = (*path, _element(_keys(path, kind), part))
                found.add((*here, "."))
                walk(part, here)
        else:
            found.add(path)

    metadata = {key: config["metadata"][key] for key in ("labels", "annotations") if key in config["metadata"]}
    body = {key: part for key, part in config.items() if key not in ("apiVersion", "kind", "metadata", "status")}
    walk({**({"metadata": metadata} if metadata else {}), **body}, ())
    return found - {(), ("f:spec",)}


def _tree(paths):
    tree = {}
    for path in paths:
        here = tree
        for step in path:
            here = here.setdefault(step, {})
    return tree


def _paths(tree):
    found = set()

    def walk(node, path):
        for step, below in node.items():
            if below:
                walk(below, (*path, step))
            else:
                found.add((*path, step))

    walk(tree, ())
    return found


def _value(it, path):
    for step in path:
        if it is None:
            return None
        if step.startswith("k:"):
            keys = json.loads(step[2:])
            it = next((part for part in it if all(part.get(key) == value for key, value in keys.items())), None)
        else:
            it = it.get(step[2:])
    return it


def _remove(it, path):
    parent = _value(it, path[:-1] if path[-1] != "." else path[:-2])
    if parent is None:
        return
    if path[-1] == ".":
        element = _value(it, path[:-1])
        parent[:] = [part for part in parent if part is not element]
    else:
        parent.pop(path[-1][2:], None)


def _merged(live, config, kind, path=()):
    if path and _is_atomic(path, kind):
        return copy.deepcopy(config)
    if isinstance(live, dict) and isinstance(config, dict):
        for key, part in config.items():
            live[key] = _merged(live.get(key), part, kind, (*path, f"f:{key}"))
        return live
    keys = _keys(path, kind) if isinstance(config, list) and isinstance(live, list) else None
    if keys:
        for part in config:
            index = next((i for i, old in enumerate(live) if all(old.get(key) == part[key] for key in keys)), None)
            if index is None:
                live.append(copy.deepcopy(part))
            else:
                live[index] = _merged(live[index], part, kind, (*path, _element(keys, part)))
        return live
    return copy.deepcopy(config)


def _merge_patched(it, patch):
    for key, part in patch.items():
        if part is None:
            it.pop(key, None)
        elif isinstance(part, dict) and isinstance(it.get(key), dict):
            _merge_patched(it[key], part)
        else:
            it[key] = copy.deepcopy(part)
    return it
