"""Question files in the published forms, small images, and a server on loopback that fails, stalls, cuts off and lies."""

from __future__ import annotations

import io
import json
import random
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from PIL import Image

from lmms_visual_heads.probe.looktwice.download import Patience

QUICK = Patience(retries=2, stall_seconds=1.0, file_seconds=5.0, pause_seconds=0.01)
SIZE = (80, 60)
KINDS = (("people", "beings"), ("cars", "vehicles"), ("cups", "objects"))


def image_bytes(number: int, size: tuple[int, int] = SIZE, kind: str = "JPEG") -> bytes:
    """A picture of noise, the same for the same number."""
    noise = random.Random(number).randbytes(3 * size[0] * size[1])
    buffer = io.BytesIO()
    Image.frombytes("RGB", size, noise).save(buffer, kind)
    return buffer.getvalue()


def facts(number: int) -> dict[str, Any]:
    """What is true of record `number`, in no particular form."""
    name, kind = KINDS[number % 3]
    return {
        "image": str(2400000 + number),
        "folder": ("VG_100K", "VG_100K_2")[number % 2],
        "box": [10 + number % 5, 8, 40 + number % 5, 30],
        "count": number % 7 + 1,
        "obj": f"How many {name} are pictured?",
        "super": f"How many of these {kind} are there?",
        "name": name,
    }


def pointqa_record(number: int) -> dict[str, Any]:
    """One record of the published JSON."""
    known = facts(number)
    left, top, right, bottom = known["box"]
    return {
        "id": int(known["image"]),
        "obj_type": known["name"],
        "obj_question": known["obj"],
        "super_question": known["super"],
        "general_question": "How many of these are there?",
        "ans": str(known["count"]),
        "point": {"x": (left + right) // 2, "y": (top + bottom) // 2, "ans": str(known["count"])},
        "bbox": {
            "x": left,
            "y": top,
            "w": right - left,
            "h": bottom - top,
            "names": [known["name"]],
            "object_id": number,
        },
    }


def pointqa_file(n: int) -> dict[str, Any]:
    """The published JSON: image id -> records."""
    return {facts(number)["image"]: [pointqa_record(number)] for number in range(n)}


def vip_file(n: int) -> list[dict[str, Any]]:
    """ViP-LLaVA's list."""
    records = []
    for number in range(n):
        known, published = facts(number), pointqa_record(number)
        questions = {name: published[name] for name in ("obj_question", "super_question", "general_question")}
        image = f"vg/{known['folder']}/{known['image']}.jpg"
        records.append(
            {
                "id": f"pointQA_twice-{number}",
                "image": image,
                "bboxes": [known["box"]],
                "answer": published["ans"],
                **questions,
            }
        )
    return records


def write(path: Path, content: Any) -> Path:
    """Write JSON, or JSON Lines where the file's name says so."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in content))
    else:
        path.write_text(json.dumps(content))
    return path


def fill(folder: Path, n: int) -> Path:
    """A local folder with the images of the first `n` records."""
    for number in range(n):
        known = facts(number)
        (folder / known["folder"]).mkdir(parents=True, exist_ok=True)
        (folder / known["folder"] / f"{known['image']}.jpg").write_bytes(image_bytes(number))
    return folder


class HostileServer:
    """Serves the images of `facts` in two folders; `behave(path, ...)` says how it answers the next requests to a path.

    The last behaviour of a path stays: ok, stall, drip, truncate, announce_more, announce_less, html, damaged, empty, endless,
    or a status such as 500.
    """

    def __init__(self, n: int) -> None:
        self.files = {f"/{facts(i)['folder']}/{facts(i)['image']}.jpg": image_bytes(i) for i in range(n)}
        self.asked: list[str] = []
        self._behaviours: dict[str, list[str | int]] = defaultdict(lambda: ["ok"])
        self._stopped = threading.Event()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                owner.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            def handle_error(self, request: Any, client_address: Any) -> None:
                """The client gave up on purpose."""

        self._server = Quiet(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self.image_url = self.address + "/{folder}/{image_id}.jpg"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def __enter__(self) -> HostileServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._server.shutdown()
        self._server.server_close()

    def path(self, number: int) -> str:
        """Where the image of record `number` lies."""
        return f"/{facts(number)['folder']}/{facts(number)['image']}.jpg"

    def behave(self, path: str, *behaviours: str | int) -> None:
        """How the next requests to `path` are answered, in turn."""
        self._behaviours[path] = list(behaviours)

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        self.asked.append(handler.path)
        content = self.files.get(handler.path)
        planned = self._behaviours[handler.path]
        behaviour = planned.pop(0) if len(planned) > 1 else planned[0]
        if behaviour == "ok" and content is None:
            behaviour = 404
        if isinstance(behaviour, int):
            self._send(handler, behaviour, b"no", "text/plain")
            return
        body = content or b""
        half = len(body) // 2
        if behaviour == "ok":
            self._send(handler, 200, body)
        elif behaviour == "html":
            self._send(handler, 200, b"<!DOCTYPE html><html><body>Please sign in</body></html>")
        elif behaviour == "damaged":
            self._send(handler, 200, body[:half] + b"\x00" * (len(body) - half))
        elif behaviour == "empty":
            self._send(handler, 200, b"")
        elif behaviour == "truncate":
            self._send(handler, 200, body[:half], announced=len(body))
        elif behaviour == "announce_more":
            self._send(handler, 200, body, announced=len(body) + 100)
        elif behaviour == "announce_less":
            self._send(handler, 200, body, announced=len(body) - 40)
        elif behaviour == "unannounced_half":
            self._send(handler, 200, body[:half], announced=None)
        elif behaviour == "stall":
            self._send(handler, 200, body[:half], announced=len(body), close=False)
            self._stopped.wait(5)
        elif behaviour == "drip":
            self._send(handler, 200, body[:10], announced=len(body), close=False)
            while not self._stopped.wait(0.1):
                handler.wfile.write(b"x")
        else:
            raise AssertionError(behaviour)

    def _send(
        self,
        handler: BaseHTTPRequestHandler,
        status: int,
        body: bytes,
        kind: str = "image/jpeg",
        announced: int | None = -1,
        close: bool = True,
    ) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        if announced is not None:
            handler.send_header("Content-Length", str(len(body) if announced < 0 else announced))
        if announced is None or announced >= 0:
            handler.send_header("Connection", "close")
        handler.end_headers()
        handler.wfile.write(body)
        handler.wfile.flush()
        handler.close_connection = close and (announced is None or announced >= 0)
