"""Questions to a server: every answer once, in order, whatever happens on the way; and the key nowhere."""

import base64
import logging
import threading
import time

import pytest
from PIL import Image
from stand_in_chat import KEY, StandInChat, text_of

from mfpo_trl.endpoint.client import Endpoint, EndpointError, Request, complete, user_message


def asked(text, **more):
    return Request(text, user_message(text), **more)


def at(server, **more):
    return Endpoint(server.url, "model", **{"timeout": 30.0, "first_wait": 0.01, **more})


@pytest.fixture
def server():
    with StandInChat(answer=lambda body: f"answer to {text_of(body)}") as own:
        yield own


LATE = ("hang", "trickle")
PASSING = ("429", "500", "503", "drop", "cut", "broken", "empty", "null", "list", *LATE)


def test_what_passes_is_tried_again_and_nothing_is_lost(server, caplog):
    """Each kind of fault twice on a question of its own, among fifty that go well."""
    names = [*PASSING, *(str(n) for n in range(50))]
    server.faults |= {name: [name, name] for name in PASSING}
    with caplog.at_level(logging.WARNING):
        found = list(complete((asked(name) for name in names), at(server, timeout=0.4)))
    assert [(request.id, answer) for request, answer in found] == [(name, f"answer to {name}") for name in names]
    assert not any(server.faults.values())
    # On a machine that is busy with other things, one that goes well may be late as well, and is tried again too.
    retried = [record.message for record in caplog.records]
    assert all(sum(f"request {name!r}" in line for line in retried) >= 2 for name in PASSING)
    assert all(
        sum(f"request {name!r}" in line and "no answer in time" in line for line in retried) >= 2 for name in LATE
    )


def test_all_kinds_of_trouble_at_random(server):
    import random

    draw = random.Random(0)
    names = [str(n) for n in range(200)]
    quick = [fault for fault in PASSING if fault not in LATE]
    server.faults |= {name: draw.choices(quick, k=draw.randrange(4)) for name in names}
    found = list(complete(map(asked, names), at(server, concurrency=4, first_wait=0.001)))
    assert [request.id for request, _ in found] == names
    assert all(answer == f"answer to {request.id}" for request, answer in found)
    assert 1 < server.most_at_once <= 4


@pytest.mark.parametrize("concurrency", [1, 3])
def test_no_more_at_a_time_than_allowed_and_none_read_far_ahead(server, concurrency):
    server.pause = 0.01
    read = []
    for n, _ in enumerate(
        complete((read.append(n) or asked(str(n)) for n in range(40)), at(server, concurrency=concurrency))
    ):
        assert len(read) <= n + 1 + 4 * concurrency
    assert min(concurrency, 2) <= server.most_at_once <= concurrency


@pytest.mark.parametrize("in_order", [True, False])
def test_a_slow_one_does_not_change_the_order_but_where_asked(in_order):
    """The first is answered when the last is known to be."""
    last = threading.Event()

    def answer(body):
        if in_order and text_of(body) == "3":
            last.set()
        assert text_of(body) != "0" or last.wait(20)
        return "Yes"

    found = []
    with StandInChat(answer=answer) as server:
        for request, _ in complete(map(asked, "0123"), at(server, timeout=30), in_order=in_order):
            found.append(request.id)
            if len(found) == 3:
                last.set()
    assert found == [*"0123"] if in_order else found[-1] == "0" and sorted(found) == [*"0123"]


# What stops a run                       what the error says
FOR_GOOD = {
    "400": "answered 400: .*the prompt is too long",
    "404": "answered 404: .*no such model.*is 'model' the name",
    "307": "answered 307; give the address that it points to: http://127.0.0.1:9/elsewhere",
    "500": "answered 500: .*out of memory.*; tried 3 times",
    "drop": "tried 3 times",
    "hang": "no answer in time; tried 3 times",
    "broken": "no chat completion with a text came.*tried 3 times",
}


@pytest.mark.parametrize("fault", FOR_GOOD)
def test_what_stays_is_an_error_after_all_other_answers(server, fault):
    server.faults["2"] = [fault] * 3
    server.pause = 0.02
    found = []
    with pytest.raises(EndpointError, match=f"request '2': http://127.*{FOR_GOOD[fault]}"):
        for request, answer in complete(
            map(asked, map(str, range(500))),
            at(server, timeout=1.2 if fault == "hang" else 20, tries=3, concurrency=4),
        ):
            found.append((request.id, answer))
    asked_for = {text_of(one["body"]) for one in server.seen} - {"2"}
    assert {name for name, _ in found} == asked_for, "an answer that the server gave was lost"
    assert [int(name) for name, _ in found] == sorted(int(name) for name in asked_for)
    assert len(asked_for) < 500


def test_an_unreadable_image_among_the_requests_loses_no_answer(server):
    def requests():
        yield from map(asked, "abc")
        raise ValueError("picture 4 is broken")

    found = []
    with pytest.raises(ValueError, match="picture 4"):
        for one, _ in complete(requests(), at(server)):
            found.append(one.id)
    assert found == list("abc")


def test_no_server_there():
    with pytest.raises(EndpointError, match="refused; tried 2 times"):
        list(complete([asked("a")], Endpoint("http://127.0.0.1:9", "model", tries=2, first_wait=0.01)))


def test_the_wait_is_the_one_that_the_server_asks_for(server):
    server.faults["a"] = ["429"]
    start = time.monotonic()
    list(complete([asked("a")], at(server, first_wait=60.0)))
    assert 0.05 <= time.monotonic() - start < 5


def test_who_leaves_early_leaves_no_thread_behind(server):
    before = threading.active_count()
    answers = complete(map(asked, map(str, range(100))), at(server, concurrency=3))
    next(answers)
    answers.close()
    until = time.monotonic() + 10
    while any(thread.name.startswith("mfpo-endpoint") for thread in threading.enumerate()):
        assert time.monotonic() < until, (before, threading.enumerate())
        time.sleep(0.01)
    assert len(server.seen) < 30


def test_the_key_is_sent_and_said_nowhere(monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("OWN_KEY", f" {KEY}\n")
    with StandInChat(key=KEY) as server:
        endpoint = at(server, key_env="OWN_KEY")
        server.faults["a"] = ["500"]
        assert [answer for _, answer in complete([asked("a")], endpoint)] == ["Yes"]
        server.key = "another"
        with pytest.raises(EndpointError, match=r"answered 401: .*wrong key Bearer \*\*\*.*variable OWN_KEY") as error:
            list(complete([asked("b")], endpoint))
        monkeypatch.setenv("OWN_KEY", f"{KEY}\nX-More: 1")
        with pytest.raises(EndpointError, match="the key in OWN_KEY holds characters") as worse:
            list(complete([asked("c")], endpoint))
        monkeypatch.delenv("OWN_KEY")
        with pytest.raises(EndpointError, match="answered 401"):
            list(complete([asked("d")], endpoint))
    said = [str(error.value), str(worse.value), repr(endpoint), repr(asked("a")), caplog.text]
    assert KEY not in "".join(said)
    assert [("Authorization" in one["headers"]) for one in server.seen] == [True, True, True, False]


def test_what_is_sent(server, tmp_path):
    Image.new("RGB", (2, 2), "red").save(tmp_path / "a.jpg")
    data = (tmp_path / "a.jpg").read_bytes()
    messages = user_message("what?", [tmp_path / "a.jpg", data, Image.new("RGB", (1, 1))])
    request = Request(1, messages, max_tokens=7, fields={"seed": 3})
    list(
        complete(
            [request, Request(2, user_message("b"), max_tokens=None, temperature=None)], at(server, concurrency=1)
        )
    )
    first, second = (one["body"] for one in server.seen)
    assert first | {"messages": []} == {
        "model": "model",
        "messages": [],
        "max_tokens": 7,
        "temperature": 0.0,
        "seed": 3,
    }
    *shown, text = first["messages"][0]["content"]
    assert text == {"type": "text", "text": "what?"}
    urls = [one["image_url"]["url"] for one in shown]
    assert urls[0] == urls[1] == "data:image/jpeg;base64," + base64.b64encode(data).decode()
    assert urls[2].startswith("data:image/png;base64,")
    assert second == {"model": "model", "messages": [{"role": "user", "content": "b"}]}
    with pytest.raises(ValueError, match=r"notes.txt is no JPEG, PNG, GIF or WebP"):
        (tmp_path / "notes.txt").write_text("x")
        user_message("a", [tmp_path / "notes.txt"])


@pytest.mark.parametrize(
    "url, expected",
    {
        "http://host:8000": "http://host:8000/v1/chat/completions",
        "http://host:8000/": "http://host:8000/v1/chat/completions",
        "https://host/v1": "https://host/v1/chat/completions",
        "https://host/openai/v1/": "https://host/openai/v1/chat/completions",
        "http://host/v1/chat/completions": "http://host/v1/chat/completions",
    }.items(),
)
def test_addresses(url, expected):
    assert Endpoint(url, "model").address == expected


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"url": "localhost:8000"}, "'localhost:8000' is no address"),
        ({"url": "ftp://host"}, "is no address"),
        ({"url": "http://"}, "is no address"),
        ({"url": "http://user:secret@host/v1"}, "holds a name or a password; give the key in OPENAI_API_KEY"),
        ({"concurrency": 0}, "concurrency is 0; expected at least 1"),
        ({"tries": 0}, "tries is 0"),
        ({"timeout": 0.0}, "timeout is 0.0"),
    ],
)
def test_bad_endpoints(fields, words):
    with pytest.raises(ValueError, match=words) as error:
        Endpoint(**{"url": "http://host", "model": "model"} | fields)
    assert "secret" not in str(error.value)
