# SPDX-License-Identifier: Apache-2.0
"""HTTP requests with a time limit for the whole request, however slowly a server sends, and a bound on the answer's bytes.

The timeouts of `requests` apply to one read of the socket: a server that sends a byte now and then makes it wait for ever. Here
a timer ends the connection when the time of the request is over. Any read from the connection then returns.
"""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import requests
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool


# Seconds to connect. Bytes of an answer: the records of 1,024 completions of 16,384 tokens, at 192 bytes a token, in base 64.
CONNECT, ANSWER_BYTES = 10.0, 2**32
_PIECE = 2**20  # bytes that are read at a time
_of_thread = threading.local()


class _TimeIsOver(Exception):
    """The time is over. It is not a network error, because urllib3 would try again after one."""


class _Limit:
    """The connections of one request. They are ended when its time is over."""

    def __init__(self):
        self.over = False
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []

    def add(self, connection: socket.socket) -> None:
        # A copy of the socket ends the same connection. Closing or wrapping the original does not affect it.
        copy = connection.dup()
        with self._lock:
            self._sockets.append(copy)
            if self.over:
                _end(copy)

    def end(self) -> None:
        with self._lock:
            self.over = True
            for connection in self._sockets:
                _end(connection)

    def forget(self) -> None:
        with self._lock:
            for connection in self._sockets:
                connection.close()
            self._sockets.clear()


def _end(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:  # the other side has ended it
        pass


class _Watched:
    """A connection that gives its socket to the limit of the thread's request."""

    _copy: socket.socket | None = None

    def _new_conn(self):
        limit = getattr(_of_thread, "limit", None)
        if limit is not None and limit.over:
            raise _TimeIsOver
        connection = super()._new_conn()  # type: ignore[misc]
        if limit is not None:
            limit.add(connection)
        if self._copy is not None:
            self._copy.close()
        self._copy = connection.dup()
        return connection

    def request(self, *args, **kwargs):
        limit = getattr(_of_thread, "limit", None)
        if limit is not None and self._copy is not None:  # a copy of an earlier request
            limit.add(self._copy)
        return super().request(*args, **kwargs)  # type: ignore[misc]

    def close(self):
        super().close()  # type: ignore[misc]
        if self._copy is not None:
            self._copy.close()
            self._copy = None


class _Connection(_Watched, HTTPConnection):
    pass


class _SecureConnection(_Watched, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


_POOLS = {"http": _Pool, "https": _SecurePool}


def watch(session: requests.Session) -> None:
    """Make `time_limit` work for the requests of a session. Its adapters keep their retries and their sizes."""
    for adapter in set(session.adapters.values()):
        if not isinstance(adapter, requests.adapters.HTTPAdapter):
            continue  # an adapter without a socket, as in tests
        adapter.poolmanager.pool_classes_by_scheme = _POOLS
        make = adapter.proxy_manager_for

        def watched(proxy, make=make, **options):
            manager = make(proxy, **options)
            manager.pool_classes_by_scheme = _POOLS
            return manager

        adapter.proxy_manager_for = watched  # type: ignore[method-assign]


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """
    A limit on the time of all requests that this thread makes inside the block, over sessions given to `watch`.

    Raises:
        requests.Timeout: if the time was over before the end.
    """
    limit, before = _Limit(), getattr(_of_thread, "limit", None)
    timer = threading.Timer(seconds, limit.end)
    timer.daemon = True
    _of_thread.limit = limit
    timer.start()
    try:
        yield
    except Exception as error:  # a reader can raise anything when its connection is ended
        if limit.over:
            raise requests.Timeout(f"its answer was still coming after {seconds:g} seconds") from error
        raise
    finally:
        timer.cancel()
        _of_thread.limit = before
        limit.forget()
    if limit.over:  # an answer without a length looks whole when the connection is ended
        raise requests.Timeout(f"its answer was still coming after {seconds:g} seconds")


def fetch(method: str, url: str, seconds: float, most: int = ANSWER_BYTES, **options) -> tuple[int, str]:
    """
    Status and text of the answer to one request.

    Args:
        method, url (`str`).
        seconds (`float`): time of the whole request, from the connection to the last byte of the answer.
        most (`int`): largest size of the answer in bytes, after decompression.
        options: options of `requests`, for example `json=`.

    Raises:
        requests.RequestException: if the answer is late, too long or incomplete.
    """
    with requests.Session() as session:
        watch(session)
        with time_limit(seconds):
            timeout = (min(CONNECT, seconds), seconds)
            with session.request(method, url, timeout=timeout, stream=True, **options) as response:
                parts, size = [], 0
                for part in response.iter_content(_PIECE):
                    size += len(part)
                    if size > most:
                        raise requests.exceptions.ContentDecodingError(f"its answer has more than {most} bytes")
                    parts.append(part)
                return response.status_code, b"".join(parts).decode("utf-8", "replace")
