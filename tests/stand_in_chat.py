"""A small chat-completions server on the loopback, whose faults are scripted.

with StandInChat(answer=lambda body: "Yes") as server:
    server.faults["a prompt"] = ["429", "drop", "broken"]   # what its next requests with that text meet
    list(complete(requests, Endpoint(server.url, "model")))
"""

import contextlib
import json
import socket
import threading
import time
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "sk-stand-in-0123456789"

FAULTS = {
    "429": (429, {"Retry-After": "0.05"}, {"error": {"message": "too many"}}),
    "500": (500, {}, {"error": {"message": "out of memory"}}),
    "503": (503, {"Retry-After": "Sat, 01 Jan 2000 00:00:00 GMT"}, "busy"),
    "400": (400, {}, {"error": {"message": "the prompt is too long"}}),
    "404": (404, {}, {"error": {"message": "no such model"}}),
    "307": (307, {"Location": "http://127.0.0.1:9/elsewhere"}, ""),
    "broken": (200, {}, '{"choices": [{"mess'),
    "empty": (200, {}, {"choices": []}),
    "null": (200, {}, {"choices": [{"message": {"content": None}}]}),
    "list": (200, {}, "[]"),
}


class StandInChat:
    def __init__(self, answer=lambda body: "Yes", key=None, pause=0.0):
        self.answer, self.key, self.pause = answer, key, pause
        self.faults = defaultdict(list)
        self.seen: list[dict] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    def __enter__(self):
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"chat": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()


def text_of(body: dict) -> str:
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


class Handler(BaseHTTPRequestHandler):
    chat: StandInChat

    def log_message(self, *args):
        pass

    def do_POST(self):
        own = self.chat
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with own.lock:
            own.at_once += 1
            own.most_at_once = max(own.most_at_once, own.at_once)
            own.seen.append({"path": self.path, "body": body, "headers": dict(self.headers)})
            due = own.faults.get(text_of(body))
            fault = due.pop(0) if due else None
        time.sleep(own.pause)
        with own.lock:
            # Who has the answer may ask again before this thread goes on.
            own.at_once -= 1
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.reply(fault, body)

    def reply(self, fault, body):
        key = self.headers.get("Authorization")
        if self.chat.key and key != f"Bearer {self.chat.key}":
            self.send(401, {}, {"error": {"message": f"wrong key {key}"}})
        elif fault == "drop":
            self.connection.shutdown(socket.SHUT_RDWR)
        elif fault == "hang":
            time.sleep(4)
        elif fault == "trickle":
            self.send_response(200)
            self.end_headers()
            for _ in range(12):
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(0.1)
        elif fault == "cut":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"choices": ')
        elif fault:
            self.send(*FAULTS[fault])
        else:
            self.send(200, {}, {"choices": [{"message": {"role": "assistant", "content": self.chat.answer(body)}}]})

    def send(self, status, headers, content):
        data = (content if isinstance(content, str) else json.dumps(content)).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
