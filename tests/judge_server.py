"""A local stand-in for an endpoint that speaks the OpenAI chat API. It answers as a function, the policy, decides:

    def policy(request):
        return {"grammar": 7}                      # the answer as JSON

    with judge_server(policy) as server:
        Endpoint(base_url=server.base_url, model=server.model).ask(questions)
    assert len(server.requests) == len(questions)

A policy returns a mapping (sent as JSON), a string (sent as it is), or a `Reply` for everything else: `refuses(429)`,
`cut_off()`, `hangs()`, `Reply(finish_reason="length")`. It runs in the request's own thread, so a slow endpoint is a
policy that waits. `request.attempt` counts the earlier requests with the same text.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "stand-in"


@dataclass(frozen=True)
class Request:
    """A request for an answer.

    instructions: the system message; empty if there is none
    text: the user message
    body: the whole JSON
    headers: in lower case
    attempt: how many requests with this text came before it
    """

    instructions: str
    text: str
    body: Mapping[str, Any]
    headers: Mapping[str, str]
    attempt: int


@dataclass(frozen=True)
class Reply:
    """How a request is answered.

    content: of the message
    refusal: a sentence instead of it
    finish_reason: why the answer ends
    status: the HTTP status
    error: the JSON under `error` if the status isn't 200
    headers: further headers
    body: sent instead of a completion
    is_cut_off: close the connection after half of the body
    is_hanging: never answer
    """

    content: str | None = ""
    refusal: str | None = None
    finish_reason: str = "stop"
    status: int = 200
    error: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str | None = None
    is_cut_off: bool = False
    is_hanging: bool = False


Policy = Callable[[Request], "Reply | Mapping[str, Any] | str"]

AT_ONCE = {"retry-after-ms": "1"}
"""Headers that let the client repeat its request without waiting."""


def refuses(status: int, message: str = "no", headers: Mapping[str, str] = AT_ONCE, **error: Any) -> Reply:
    return Reply(status=status, error={"message": message, **error}, headers=headers)


def cut_off() -> Reply:
    return Reply(content="x" * 200, is_cut_off=True)


def hangs() -> Reply:
    return Reply(is_hanging=True)


class JudgeServer:
    """A server that is running.

    requests: for answers, in the order of their arrival
    most_at_once: the largest number of requests that were being answered at the same time
    """

    def __init__(self, policy: Policy, *, key: str | None, model: str):
        self.policy, self.key, self.model = policy, key, model
        self.requests: list[Request] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self.closing = threading.Event()
        self.http = Server(("127.0.0.1", 0), Handler)
        self.http.judge = self  # type: ignore[attr-defined]

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}/v1"

    def answer(self, body: Mapping[str, Any], headers: Mapping[str, str]) -> Reply:
        """Record a request and return what the policy says; the key and the model are checked first."""
        if self.key is not None and headers.get("authorization") != f"Bearer {self.key}":
            shown = headers.get("authorization", "")
            return refuses(401, f"Incorrect API key provided: {shown}", code="invalid_api_key")
        if body.get("model") != self.model:
            return refuses(404, f"The model {body.get('model')} does not exist", code="model_not_found")
        by_role = {message["role"]: message["content"] for message in body["messages"]}
        with self._lock:
            text = by_role["user"]
            attempt = sum(earlier.text == text for earlier in self.requests)
            request = Request(by_role.get("system", ""), text, body, headers, attempt)
            self.requests.append(request)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            reply = self.policy(request)
        finally:
            with self._lock:
                self._at_once -= 1
        if isinstance(reply, Mapping):
            reply = json.dumps(reply)
        return Reply(content=reply) if isinstance(reply, str) else reply


@contextlib.contextmanager
def judge_server(policy: Policy, *, key: str | None = None, model: str = MODEL) -> Iterator[JudgeServer]:
    """Serve at `server.base_url` while the context lasts.

    Args:
        key: refuse requests with another key; None accepts all.
    """
    server = JudgeServer(policy, key=key, model=model)
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.http.shutdown()
        server.http.server_close()
        thread.join()


class Server(ThreadingHTTPServer):
    daemon_threads = True


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        if not self.path.endswith("/v1/models"):
            return self.send(404, "{}")
        self.send(200, json.dumps({"object": "list", "data": [{"id": self.judge.model, "object": "model"}]}))

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if not self.path.endswith("/v1/chat/completions"):
            return self.send(404, json.dumps({"detail": "Not Found"}))
        reply = self.judge.answer(json.loads(content), {k.lower(): v for k, v in self.headers.items()})
        if reply.is_hanging:
            self.judge.closing.wait()
            self.close_connection = True
            return
        body = reply.body
        if body is None:
            body = json.dumps({"error": reply.error} if reply.status != 200 else completion(reply, content))
        self.send(reply.status, body, reply.headers, reply.is_cut_off)

    def send(
        self, status: int, body: str, headers: Mapping[str, str] = AT_ONCE, is_cut_off: bool = False
    ) -> None:
        encoded = body.encode()
        with contextlib.suppress(ConnectionError):  # the client has given up
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(encoded)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(encoded[: len(encoded) // 2] if is_cut_off else encoded)
        if is_cut_off:
            self.close_connection = True

    @property
    def judge(self) -> JudgeServer:
        return self.server.judge  # type: ignore[attr-defined]

    def log_message(self, *_: object) -> None:
        pass


def completion(reply: Reply, question: bytes) -> dict[str, Any]:
    """Return a chat completion; a token of its usage is four bytes."""
    message = {"role": "assistant", "content": reply.content, "refusal": reply.refusal}
    tokens = (len(question) // 4, len(reply.content or "") // 4)
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": MODEL,
        "choices": [{"index": 0, "message": message, "finish_reason": reply.finish_reason}],
        "usage": {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)},
    }
