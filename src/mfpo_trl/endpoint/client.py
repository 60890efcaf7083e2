"""Questions to a server that speaks OpenAI's chat completions (vLLM, SGLang, llama.cpp, OpenAI), several at a time, none lost."""

import base64
import email.utils
import http.client
import io
import json
import logging
import os
import queue
import re
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

logger = logging.getLogger(__name__)

LONGEST_WAIT = 60.0
"""Seconds between two tries at most, where the server does not ask for more."""

LONGEST_ASKED = 600.0
"""Seconds of a server's `Retry-After` that are waited for at most."""

AHEAD = 4
"""Requests that are read ahead of the one whose answer is due, for each connection."""

PASSING = (408, 409, 425, 429)
"""Status codes below 500 that a later try may not meet."""

MAGIC = {b"\xff\xd8\xff": "jpeg", b"\x89PNG": "png", b"GIF8": "gif", b"RIFF": "webp"}
"""The first bytes of the image files that such servers read, and their type."""


class EndpointError(RuntimeError):
    """The server did not answer; what it answered before was handed on."""


class _Passing(Exception):
    """A failure that a later try may not meet, and the seconds that the server asks to wait."""

    def __init__(self, words: str, wait: float | None = None):
        super().__init__(words)
        self.wait = wait


@dataclass(frozen=True)
class Endpoint:
    """A server, and how it is asked.

    Args:
        url: of the server (`http://localhost:8000`), of its API (`.../v1`) or of its chat completions.
        model: the name under which the server has the model.
        key_env: environment variable that holds the key, if the server wants one. The key is read when a request is sent, and kept nowhere.
        concurrency: requests at a time, at least 1.
        timeout: seconds until an answer must be there in full.
        tries: of one request, at least 1.
        first_wait: seconds before the second try, doubled before each further one up to `LONGEST_WAIT`; a `Retry-After` goes first.

    Raises:
        ValueError: an address that is none, or holds a password; a number out of range.
    """

    url: str
    model: str
    key_env: str = "OPENAI_API_KEY"
    concurrency: int = 8
    timeout: float = 300.0
    tries: int = 8
    first_wait: float = 1.0

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.username or parts.password:
            raise ValueError(
                f"the address of a server at {parts.hostname} holds a name or a password; give the key in {self.key_env}"
            )
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"{self.url!r} is no address of a server; give one such as http://localhost:8000/v1")
        for name in ("concurrency", "tries"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if not self.timeout > 0:
            raise ValueError(f"timeout is {self.timeout}; expected seconds above 0")

    @property
    def address(self) -> str:
        """Where requests go."""
        url = self.url.rstrip("/").removesuffix("/chat/completions")
        return f"{url if urlsplit(url).path else url + '/v1'}/chat/completions"


@dataclass(frozen=True)
class Request:
    """One question.

    Args:
        id: whatever tells it from others; errors name it.
        messages: as chat completions take them; `user_message` makes one of a prompt and images.
        max_tokens: of the answer; None leaves it to the server.
        temperature: 0 for greedy; None leaves it to the server.
        fields: further fields of the request (`seed`, `stop`, `top_p`, ...).
        tag: whatever its sender wants back with the answer.
    """

    id: Any
    messages: Sequence[Mapping[str, Any]] = field(repr=False)
    max_tokens: int | None = 1024
    temperature: float | None = 0.0
    fields: Mapping[str, Any] = field(default_factory=dict)
    tag: Any = field(default=None, repr=False)

    def body(self, model: str) -> bytes:
        """What is sent."""
        own = {"max_tokens": self.max_tokens, "temperature": self.temperature}
        sent = {name: value for name, value in own.items() if value is not None}
        return json.dumps({"model": model, "messages": list(self.messages), **sent, **self.fields}).encode()


def user_message(prompt: str, images: Sequence[Any] = ()) -> list[dict[str, Any]]:
    """Messages of one turn: the images as data URLs, then the text.

    Args:
        prompt: the text.
        images: paths, bytes of JPEG, PNG, GIF or WebP files, which go as they are, or PIL images, which go as PNG.

    Raises:
        ValueError: a file of another type.
        OSError: a file that cannot be read.
    """
    if not images:
        return [{"role": "user", "content": prompt}]
    shown = [{"type": "image_url", "image_url": {"url": _data_url(image)}} for image in images]
    return [{"role": "user", "content": [*shown, {"type": "text", "text": prompt}]}]


def complete(
    requests: Iterable[Request], endpoint: Endpoint, *, in_order: bool = True
) -> Iterator[tuple[Request, str]]:
    """The answers of a server, each with its request, as they are there.

    Requests are read a few ahead of the answers, so that a generator of them holds few images at a time. A request that fails
    for a passing reason (no connection, time out, 408, 409, 425, 429, 5xx, an answer that is none) is tried again. After one
    that fails for good no further ones are sent, the answers under way are still handed on, and then the error is raised.

    Args:
        requests: the questions.
        endpoint: the server.
        in_order: answers in the order of the requests; otherwise as they come, for who keeps each at once.

    Raises:
        EndpointError: a request failed for good; says which, why, and what the server said. Never holds the key.
    """
    line = _Line(endpoint)
    try:
        yield from _handed_on(iter(requests), line, AHEAD * endpoint.concurrency, in_order)
    finally:
        line.close()


class _Line:
    """Requests on their way through the threads of an endpoint.

    Not those of a pool, which would keep a process that was interrupted until their requests time out.
    """

    def __init__(self, endpoint: Endpoint):
        self.endpoint = endpoint
        self.todo: queue.SimpleQueue[tuple[int, Request] | None] = queue.SimpleQueue()
        self.done: queue.SimpleQueue[tuple[int, Request, str | Exception | None]] = queue.SimpleQueue()
        self.stopped = threading.Event()
        for _ in range(endpoint.concurrency):
            threading.Thread(target=self._work, name="mfpo-endpoint", daemon=True).start()

    def _work(self) -> None:
        while (job := self.todo.get()) is not None:
            result: str | Exception | None = None
            if not self.stopped.is_set():
                try:
                    result = _asked(job[1], self.endpoint, self.stopped)
                except Exception as error:
                    result = error
            self.done.put((*job, result))

    def close(self) -> None:
        """Nothing that waits is sent any more."""
        self.stopped.set()
        for _ in range(self.endpoint.concurrency):
            self.todo.put(None)


def _handed_on(source: Iterator[Request], line: _Line, ahead: int, in_order: bool) -> Iterator[tuple[Request, str]]:
    """The answers that the line brings; what failed first, in the source or on the way, is raised at the end."""
    ready: dict[int, tuple[Request, str]] = {}
    failure: Exception | None = None
    sent = open_ = due = 0
    more = True
    while True:
        while more and sent - due < ahead:
            try:
                line.todo.put((sent, next(source)))
            except StopIteration:
                more = False
            except Exception as error:
                failure, more = failure or error, False
            else:
                sent, open_ = sent + 1, open_ + 1
        if not open_:
            break
        number, request, result = line.done.get()
        open_ -= 1
        if isinstance(result, Exception):
            failure, more = failure or result, False
            line.stopped.set()
        elif result is not None:
            ready[number] = (request, result)
        while ready and (due in ready or not in_order):
            yield ready.pop(due if in_order else number)
            due += 1
    yield from (ready[number] for number in sorted(ready))
    if failure is not None:
        raise failure


def _asked(request: Request, endpoint: Endpoint, stopped: threading.Event) -> str:
    """The answer to one request, tried again while what stops it may pass."""
    for tried in range(1, endpoint.tries + 1):
        try:
            return _answered(request, endpoint)
        except _Passing as error:
            asked = min(endpoint.first_wait * 2 ** (tried - 1), LONGEST_WAIT)
            wait = asked if error.wait is None else min(error.wait, LONGEST_ASKED)
            if tried < endpoint.tries and not stopped.is_set():
                logger.warning("request %r: %s; trying again in %g s", request.id, error, wait)
            if tried == endpoint.tries or stopped.wait(wait):
                times = "once" if tried == 1 else f"{tried} times"
                raise EndpointError(f"request {request.id!r}: {error}; tried {times}") from None
    raise AssertionError("the last try returns or raises")


class _Stays(urllib.request.HTTPRedirectHandler):
    """The key goes where the user sent it, and nowhere that an answer points to."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        return None


def _answered(request: Request, endpoint: Endpoint) -> str:
    """The text of one answer.

    Raises:
        _Passing: a later try may succeed.
        EndpointError: no later try will.
    """
    key = _key(endpoint)
    headers = {"Content-Type": "application/json", "User-Agent": "mfpo_trl"}
    headers |= {"Authorization": f"Bearer {key}"} if key else {}
    sent = urllib.request.Request(endpoint.address, request.body(endpoint.model), headers, method="POST")
    until = time.monotonic() + endpoint.timeout
    try:
        with urllib.request.build_opener(_Stays).open(sent, timeout=endpoint.timeout) as response:
            return _text(_read(response, until), endpoint.address)
    except urllib.error.HTTPError as error:
        _raise_refused(error, request, endpoint, key)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise EndpointError(f"{endpoint.address}: {reason}") from None
        said = "no answer in time" if isinstance(reason, TimeoutError) else str(reason) or type(reason).__name__
        raise _Passing(f"{endpoint.address}: {said}") from None


def _key(endpoint: Endpoint) -> str:
    key = os.environ.get(endpoint.key_env, "").strip()
    # http.client would show the whole header in its error.
    if not (key.isascii() and key.isprintable()):
        raise EndpointError(f"the key in {endpoint.key_env} holds characters that no key holds")
    return key


def _read(response: http.client.HTTPResponse, until: float) -> bytes:
    """The whole body: a server that sends a byte now and then would otherwise never time out."""
    parts = []
    while part := response.read1(1 << 16):
        parts.append(part)
        if time.monotonic() > until:
            raise TimeoutError
    return b"".join(parts)


def _text(data: bytes, address: str) -> str:
    """The text in a chat completion; a refusal is an answer too."""
    try:
        message = json.loads(data)["choices"][0]["message"]
        text = message.get("content")
        text = message.get("refusal") if text is None else text
    except (ValueError, LookupError, TypeError, AttributeError):
        text = None
    if not isinstance(text, str):
        shown = data[:200].decode("utf-8", "replace")
        raise _Passing(f"{address}: no chat completion with a text came, but {shown!r}")
    return text


def _raise_refused(error: urllib.error.HTTPError, request: Request, endpoint: Endpoint, key: str) -> NoReturn:
    try:
        said = error.read(2000).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        said = ""
    said = " ".join((said.replace(key, "***") if key else said).split())[:500]
    words = f"{endpoint.address} answered {error.code}{f': {said}' if said else ''}"
    if error.code in PASSING or error.code >= 500:
        raise _Passing(words, _asked_wait(error.headers.get("Retry-After"))) from None
    hint = {
        401: f"; the key is read from the environment variable {endpoint.key_env}",
        404: f"; is {endpoint.model!r} the name under which the server has the model?",
    }.get(error.code, "")
    if 300 <= error.code < 400:
        hint = f"; give the address that it points to: {error.headers.get('Location')}"
    raise EndpointError(f"request {request.id!r}: {words}{hint}") from None


def _asked_wait(text: str | None) -> float | None:
    """Seconds of a `Retry-After`, which is a number or a date; None where it is neither."""
    if text is None:
        return None
    if re.fullmatch(r"\s*\d+(\.\d+)?\s*", text):
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None


def _data_url(image: Any) -> str:
    if hasattr(image, "save"):
        held = io.BytesIO()
        image.save(held, format="PNG")
        data, name = held.getvalue(), "an image"
    else:
        data, name = (image, "an image") if isinstance(image, bytes) else (Path(image).read_bytes(), str(image))
    kind = next((kind for magic, kind in MAGIC.items() if data.startswith(magic)), None)
    if kind is None:
        raise ValueError(f"{name} is no JPEG, PNG, GIF or WebP file, which is what servers read; convert it")
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
