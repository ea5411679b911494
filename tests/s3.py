"""A real S3 server on the loopback, and a door before it that can be shut in mid-run."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from avpipe.pipeline import remote

FORBIDDEN = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


class Door:
    """Passes connections on to a server, for as long as it is open.

    Attributes:
        says_no: of a request's first line (``b"PUT /bucket/key HTTP/1.1"``): whether it is answered "access denied".
        shuts_at: of the same: whether the door falls shut when it comes.
        seen: first lines of all requests.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self.port = 0
        self.says_no: Callable[[bytes], bool] = lambda line: False
        self.shuts_at: Callable[[bytes], bool] = lambda line: False
        self.seen: list[bytes] = []
        self.open()

    def open(self) -> None:
        """Let everybody in, always at the same port."""
        self.says_no = self.shuts_at = lambda line: False
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self.port))
            self.port = self._listener.getsockname()[1]
            threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def shut(self) -> None:
        """Refuse who comes, and throw out who is in."""
        with self._lock:
            doomed, self._connections = self._connections, set()
            listener, self._listener = self._listener, None
        for connection in (*doomed, *([listener] if listener else [])):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                ours, _ = listener.accept()
                theirs = socket.create_connection(self._target)
                with self._lock:
                    if self._listener is not listener:
                        ours.close()
                        theirs.close()
                        return
                    self._connections |= {ours, theirs}
                threading.Thread(target=self._pump, args=(ours, theirs, True), daemon=True).start()
                threading.Thread(target=self._pump, args=(theirs, ours, False), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, is_request: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                line = data.partition(b"\r\n")[0]
                if is_request and b" HTTP/1.1" in line:
                    self.seen.append(line)
                    if self.shuts_at(line):
                        self.shut()
                        return
                    if self.says_no(line):
                        head = b"HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Type: application/xml\r\n"
                        body = b"" if line.startswith(b"HEAD") else FORBIDDEN
                        source.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
                        break
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        with self._lock:
            self._connections -= {source, target}


@contextmanager
def serving(setenv: Callable[[str, str], None]) -> Iterator[Door]:
    """A server with an empty bucket ``bucket``, and the environment in which S3 means this server."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    door = Door((host, port))
    settings = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{door.port}",
        "AWS_ACCESS_KEY_ID": "toy",
        "AWS_SECRET_ACCESS_KEY": "toy",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",  # botocore's own; those of s3fs take a second
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/nonexistent",
        "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
        "NO_PROXY": "127.0.0.1",
    }
    for name, value in settings.items():
        setenv(name, value)
    remote._filesystem.cache_clear()  # connections of this process to a former server
    import boto3

    boto3.client("s3").create_bucket(Bucket="bucket")
    try:
        yield door
    finally:
        remote._filesystem.cache_clear()
        door.shut()
        server.stop()
