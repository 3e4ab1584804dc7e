"""Cameras on loopback: servers that send JPEG images over HTTP (multipart) and over RTSP (RTP, RFC 2326 and 2435)."""

import contextlib
import io
import itertools
import re
import socketserver
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler

import numpy as np
from PIL import Image

SIZE = (96, 64)
FRAMES_PER_SECOND = 25
BARS = 6  # each a bit of the frame's number
PERIOD = 2**BARS  # frames after which the images repeat: more than a busy machine drops at once


def jpeg(number: int, size: tuple[int, int] = SIZE) -> bytes:
    """An image of upright bars, black and white, which say in binary which frame of the period it is."""
    buffer = io.BytesIO()
    bits = np.uint8([[255 * (number >> bar & 1) for bar in range(BARS)]])
    image = Image.fromarray(bits).resize(size, Image.Resampling.NEAREST).convert("RGB")
    image.save(buffer, format="JPEG", quality=90, subsampling="4:2:0")
    return buffer.getvalue()


def frame_number(image: Image.Image) -> int:
    """Which frame of the period an image is."""
    bars = np.array_split(np.asarray(image.convert("L")), BARS, axis=1)
    return sum(int(bar.mean() > 127) << place for place, bar in enumerate(bars))


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, port: int, handler: type, camera: "Camera"):
        self.camera = camera
        self.sockets: list = []
        super().__init__(("127.0.0.1", port), handler)

    def handle_error(self, request, client_address):
        """Clients that hang up are nothing to report."""

    def get_request(self):
        request, address = super().get_request()
        self.sockets.append(request)
        return request, address


class Camera:
    """A context with a server that can be switched off and on again, and that can stall.

    Attributes:
        stalled: while it is set, connections stay open, but no frame is sent.
        sent: how many frames were sent.
        requests: the first lines of the clients' requests.
    """

    scheme = ""
    handler: type

    def __init__(self, size: tuple[int, int] = SIZE):
        self.size = size
        self.stalled = threading.Event()
        self.sent = 0
        self.requests: list[str] = []
        self._server: _Server | None = None
        self._port = 0

    @property
    def address(self) -> str:
        """The host and the port."""
        return f"127.0.0.1:{self._port}"

    @property
    def url(self) -> str:
        """The URL of the stream."""
        return f"{self.scheme}://{self.address}/live"

    def __enter__(self) -> "Camera":
        self.switch_on()
        return self

    def __exit__(self, *exception) -> None:
        self.switch_off()

    def switch_on(self) -> None:
        """Listen, at the port of the last time."""
        self._server = _Server(self._port, self.handler, self)
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def switch_off(self) -> None:
        """Close all connections, and refuse new ones."""
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            for connection in self._server.sockets:
                with contextlib.suppress(OSError):
                    connection.shutdown(2)
            self._server = None

    def frames(self):
        """The frames of one connection at their times."""
        for number in itertools.count():
            time.sleep(1 / FRAMES_PER_SECOND)
            while self.stalled.is_set():
                time.sleep(0.02)
            yield jpeg(number, self.size)
            self.sent += 1


class _HttpHandler(BaseHTTPRequestHandler):
    def log_message(self, *words):
        """Prints nothing."""

    def do_GET(self):
        camera = self.server.camera
        camera.requests.append(self.requestline)
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        for content in camera.frames():
            self.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(content))
            self.wfile.write(content + b"\r\n")


class HttpCamera(Camera):
    """MJPEG over HTTP."""

    scheme, handler = "http", _HttpHandler


class _RtspHandler(socketserver.StreamRequestHandler):
    def handle(self):
        camera = self.server.camera
        while request := self.rfile.readline().decode().strip():
            camera.requests.append(request)
            fields = {}
            while line := self.rfile.readline().decode().strip():
                name, _, value = line.partition(":")
                fields[name.lower()] = value.strip()
            method = request.split()[0]
            self.reply(fields["cseq"], method, request.split()[1])
            if method == "PLAY":
                for number, content in enumerate(camera.frames()):
                    for packet in rtp_packets(content, number, camera.size):
                        self.wfile.write(b"$\0" + struct.pack(">H", len(packet)) + packet)

    def reply(self, sequence: str, method: str, url: str) -> None:
        lines = ["RTSP/1.0 200 OK", f"CSeq: {sequence}"]
        body = ""
        if method == "OPTIONS":
            lines.append("Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN")
        elif method == "DESCRIBE":
            body = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nt=0 0\r\n"
            body += f"m=video 0 RTP/AVP 26\r\na=framerate:{FRAMES_PER_SECOND}\r\na=control:track\r\n"
            lines += [f"Content-Base: {url}/", "Content-Type: application/sdp", f"Content-Length: {len(body)}"]
        elif method == "SETUP":
            lines += ["Transport: RTP/AVP/TCP;unicast;interleaved=0-1", "Session: 1"]
        else:
            lines.append("Session: 1")
        self.wfile.write("\r\n".join([*lines, "", body]).encode())


def rtp_packets(content: bytes, number: int, size: tuple[int, int]) -> list[bytes]:
    """A JPEG image (4:2:0, standard Huffman tables) as RTP packets."""
    tables = b"".join(match for match in re.findall(rb"\xff\xdb\x00C.(.{64})", content, re.DOTALL))
    scan = content[content.index(b"\xff\xda") :]
    scan = scan[2 + struct.unpack(">H", scan[2:4])[0] : -2]
    parts = [(start, scan[start : start + 1000]) for start in range(0, len(scan), 1000)]
    packets = []
    for place, (start, part) in enumerate(parts):
        last = place == len(parts) - 1
        rtp = struct.pack(
            ">BBHII",
            0x80,
            26 | (last << 7),
            (number * len(parts) + place) % 65536,
            number * 90000 // FRAMES_PER_SECOND,
            7,
        )
        image = struct.pack(">IBBBB", start, 1, 255, size[0] // 8, size[1] // 8)
        quantization = struct.pack(">BBH", 0, 0, len(tables)) + tables if place == 0 else b""
        packets.append(rtp + image + quantization + part)
    return packets


class RtspCamera(Camera):
    """JPEG over RTP, interleaved in RTSP's own connection."""

    scheme, handler = "rtsp", _RtspHandler
