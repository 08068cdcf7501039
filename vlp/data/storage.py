"""Reading files of remote storage through fsspec: every request is tried again, none hangs, no body is taken for whole.

fsspec is imported when a remote directory is opened, never for local data.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from urllib.parse import quote, unquote

from vlp.errors import ConfigError, DataError
from vlp.seeds import derive

T = TypeVar("T")

_PIECE = 16 << 20
"""Bytes of one request. A broken connection costs no more than that, and a file being fetched takes twice that in
memory; a request takes 30 ms before its first byte, and a piece that size 200 ms."""
_CHUNK = 1 << 20
_SLOWEST = 64 << 10
"""Bytes per second below which an answer that never stands still is given up too."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
"""Seconds between the first two tries, doubled from then on, and the most."""

_PACKAGES = {
    "abfs": "adlfs",
    "az": "adlfs",
    "gcs": "gcsfs",
    "gs": "gcsfs",
    "hf": "huggingface_hub",
    "http": "aiohttp",
    "https": "aiohttp",
    "s3": "s3fs",
    "s3a": "s3fs",
}
"""What fsspec needs for each kind of storage."""

_URL = re.compile(r"([a-z][a-z0-9+.-]+):/{1,2}([^/].*)", re.I | re.S)
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "RefreshError")
"""Names of the errors of botocore and google.auth: they are not known before those are imported."""


class Absent(DataError):
    """There is no such remote file, or none that these credentials show."""


def remote_url(directory: Path | str) -> str | None:
    """The URL that names a remote directory, without a slash at its end; None for a local one.

    A `Path` made of a URL has lost its second slash, which is put back.
    """
    found = _URL.fullmatch(str(directory))
    return f"{found[1].lower()}://{found[2].rstrip('/')}" if found else None


def local_path(directory: Path | str) -> Path | str:
    """A `file:` URL as the path that it names (of which a `Path` has lost two slashes); all else as it is."""
    found = re.fullmatch(r"file:/{0,2}(localhost(?=/))?(/.*)", str(directory), re.I | re.S)
    return unquote(found[2]) if found else directory


class Storage:
    """A remote directory. Threads may share it; a forked or pickled copy makes its own connections.

    Args:
        url: as `remote_url` gives it.
        tries: times that a request is made.
        timeout: seconds without an answer after which a try counts as failed.
    Raises:
        ConfigError: no such kind of storage, or the package that it needs is missing.
    """

    def __init__(self, url: str, *, tries: int, timeout: float) -> None:
        self.url = url
        self._tries, self._timeout = tries, timeout
        self._protocol = url.partition(":")[0]
        self._whole_only = False
        self._opened: tuple[int, Any] | None = None
        self._inherited: list[Any] = []
        self._filesystem()

    def read(self, name: str, limit: int) -> bytes:
        """A small file.

        Raises:
            Absent: there is none.
            DataError: it cannot be fetched, or is larger than the limit.
        """
        data = self._tried(name, lambda: self._small(name, limit + 1))
        if len(data) > limit:
            raise DataError(f"{self.url}/{name}: is larger than {limit} bytes, so it is no such file; upload it again")
        return data

    def download(self, name: str, size: int, descriptor: int) -> str:
        """Write a file through a descriptor; gives its BLAKE2b (16 bytes in hexadecimal).

        Raises:
            Absent: there is none.
            DataError: it cannot be fetched, or has not as many bytes.
            OSError: the disk is full.
        """
        if self._whole_only:
            return self._tried(name, lambda: self._write(name, self._stream(name), size, descriptor))
        return self._write(name, self._pieces(name, size), size, descriptor)

    def find_out(self, name: str) -> None:
        """See by a file that is there whether the server gives parts of files; a plain HTTP server may not."""
        if self._protocol in ("http", "https"):
            self._whole_only = len(self._tried(name, lambda: self._part(name, 0, 1))) != 1

    def _write(self, name: str, parts: Iterator[bytes], size: int, descriptor: int) -> str:
        digest = hashlib.blake2b(digest_size=16)
        at = 0
        for data in parts:
            digest.update(data)
            if at + len(data) > size:
                raise ValueError(f"more than the {size} bytes that the index tells")
            view = memoryview(data)
            while view:
                written = os.pwrite(descriptor, view, at)
                view, at = view[written:], at + written
        if at != size:
            raise ValueError(f"the answer ended after {at} of {size} bytes")
        return digest.hexdigest()

    def _pieces(self, name: str, size: int) -> Iterator[bytes]:
        piece = _PIECE
        for start in range(0, size, piece):
            yield self._tried(name, partial(self._piece, name, start, min(start + piece, size)))

    def _piece(self, name: str, start: int, end: int) -> bytes:
        data = self._part(name, start, end)
        if len(data) != end - start:
            raise ValueError(f"{len(data)} bytes came where {end - start} were asked for from byte {start}")
        return data

    def _small(self, name: str, most: int) -> bytes:
        if not self._whole_only:
            return self._part(name, 0, most)
        data = bytearray()
        with closing(self._stream(name)) as parts:
            for part in parts:
                data += part
                if len(data) >= most:
                    break
        return bytes(data)

    def _part(self, name: str, start: int, end: int) -> bytes:
        """Bytes `start` to `end - 1`, or as many as there are."""
        filesystem, path = self._filesystem(), self._path(name)
        if not filesystem.async_impl:
            # The hub's would read ahead what is asked for next.
            plain = {"cache_type": "none"} if self._protocol == "hf" else {}
            data: bytes = filesystem.cat_file(path, start=start, end=end, **plain)
            return data
        from fsspec.asyn import sync

        # A limit for the whole answer, whatever the filesystem's own: one that comes byte by byte never stands still.
        seconds = self._timeout + (min(end - start, _PIECE)) / _SLOWEST
        data = sync(filesystem.loop, filesystem._cat_file, path, start=start, end=end, timeout=seconds)
        return data

    def _stream(self, name: str) -> Generator[bytes, None, None]:
        """A whole file in one answer, for HTTP servers that know no parts."""
        with self._filesystem().open(self._path(name), "rb", block_size=0, size=1) as file:
            while data := file.read(_CHUNK):
                yield data

    def _tried(self, name: str, call: Callable[[], T]) -> T:
        last: Exception | None = None
        for attempt in range(self._tries):
            if attempt:
                time.sleep(pause(name, attempt))
            try:
                return call()
            except Exception as error:  # each kind of storage raises its own
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise
                self._give_up_if_useless(name, error)
                last = error
        raise DataError(
            f"{self.url}/{name}: cannot be fetched, {self._tries} tries failed ({_told(last)}); check the connection "
            "and the storage, then continue the run with --resume"
        ) from last

    def _give_up_if_useless(self, name: str, error: Exception) -> None:
        """Raise at once what no further try would mend."""
        status = getattr(error, "status", getattr(getattr(error, "response", None), "status_code", None))
        if isinstance(error, FileNotFoundError) or status == 404:
            raise Absent(f"{self.url}/{name}: is not there; upload the shards with their index/ beside them") from error
        if isinstance(error, PermissionError) or status in (401, 403) or type(error).__name__ in _NO_CREDENTIALS:
            package = _PACKAGES.get(self._protocol, "fsspec")
            raise Absent(
                f"{self.url}/{name}: access is denied ({_told(error)}); give credentials in the environment as "
                f"{package} expects them, see docs/remote.md"
            ) from error

    def _path(self, name: str) -> str:
        name = quote(name) if self._protocol in ("http", "https") else name
        path: str = self._filesystem()._strip_protocol(f"{self.url}/{name}")
        return path

    def _filesystem(self) -> Any:
        """The fsspec filesystem of this process: none may be used after a fork."""
        if self._opened is None or self._opened[0] != os.getpid():
            # What the parent opened is kept: closing it here would take the parent's connections from its event loop.
            self._inherited.append(self._opened)
            self._opened = os.getpid(), self._open()
        return self._opened[1]

    def _open(self) -> Any:
        import fsspec

        # gcsfs would ask for a bucket's kind over gRPC, which does not outlive the fork of a loader's workers.
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        try:
            kind = fsspec.get_filesystem_class(self._protocol)
            return kind(skip_instance_cache=True, **self._options())
        except ImportError as error:
            self._refuse_missing(error)
        except ValueError as error:
            raise ConfigError(
                f"{self.url}: '{self._protocol}' is no storage that fsspec knows ({error}); "
                "give s3://, gs://, hf://, https:// or a local directory"
            ) from None

    def _refuse_missing(self, error: ImportError) -> NoReturn:
        package = _PACKAGES.get(self._protocol)
        remedy = f"needs the package {package}, which cannot be imported: pip install {package}"
        raise ConfigError(f"{self.url}: {remedy if package else f'needs another package: {error}'}") from None

    def _options(self) -> dict[str, Any]:
        """Only for HTTP, whose client ends any answer after five minutes; the others notice a silence themselves."""
        if self._protocol not in ("http", "https"):
            return {}
        import aiohttp
        from fsspec.config import conf

        waits = aiohttp.ClientTimeout(total=None, sock_connect=self._timeout, sock_read=self._timeout)
        given = conf.get(self._protocol, {}).get("client_kwargs", {})
        return {"client_kwargs": {"timeout": waits, "trust_env": True, **given}}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None, "_inherited": []}


def pause(name: str, attempt: int) -> float:
    """Seconds before a further try, 1 being the second: doubled each time, and spread so that processes differ."""
    spread = derive(os.getpid(), f"pause/{name}", attempt) / 2**64
    return min(_FIRST_PAUSE * 2.0 ** (attempt - 1), _LONGEST_PAUSE) * (0.5 + spread)


def _told(error: Exception | None) -> str:
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
