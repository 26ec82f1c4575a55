"""A disk that remembers: one file, served by FUSE, and a log of every write and flush in the order in which
they were done.

`python disk.py IMAGE LOG PLACE` mounts the image over the file PLACE, says so by a line, and serves it until
it is unmounted. Knows nothing but the kernel's protocol (linux/fuse.h). Orders come on standard input, one a
line: `flush 0.3`, so many seconds every flush takes from now on; `refuse TEXT`, writes with this text fail;
`fail`, the next write does; `take`, none does.
"""

import ctypes
import errno
import os
import select
import struct
import sys
import time

RECORD = struct.Struct("<QQ")
"""The head of a record in the log: where was written and how much; the bytes follow. Of a flush, zeros."""

_LARGEST_WRITE = 1 << 20
_OUR_NODE = 1
_DIRECT_IO = 1
"""FOPEN_DIRECT_IO: no cache of the kernel's between the disk and its log."""
_BIG_WRITES, _MAX_PAGES = 1 << 5, 1 << 22
_SET_IO_FLUSHER = 57

_libc = ctypes.CDLL(None, use_errno=True)


class Disk:
    """The image, its log, and how it behaves at this moment."""

    def __init__(self, image: str, log: str) -> None:
        self._image = os.open(image, os.O_RDWR)
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._size = os.fstat(self._image).st_size
        self._flush_s = 0.0
        self._refused: bytes | None = None
        self._fails_next = False

    def obey(self, order: bytes) -> None:
        """Behave otherwise from now on."""
        verb, _, what = order.strip().partition(b" ")
        if verb == b"flush":
            self._flush_s = float(what)
        else:
            self._refused = what if verb == b"refuse" else None
            self._fails_next = verb == b"fail"

    def answer(self, operation: int, asked: memoryview) -> bytes:
        """Do what the kernel asks for; operations by their numbers in linux/fuse.h."""
        answer = b""
        match operation:
            case 3 | 4:  # GETATTR, SETATTR
                answer = self._attributes()
            case 14:  # OPEN
                answer = struct.pack("<QII", 0, _DIRECT_IO, 0)
            case 15:  # READ
                _, offset, size = struct.unpack_from("<QQI", asked)
                answer = os.pread(self._image, size, offset)
            case 16:  # WRITE
                _, offset, size = struct.unpack_from("<QQI", asked)
                self._write(offset, asked[40 : 40 + size])
                answer = struct.pack("<II", size, 0)
            case 20:  # FSYNC
                time.sleep(self._flush_s)
                os.write(self._log, RECORD.pack(0, 0))
            case 26:  # INIT
                answer = struct.pack("<IIIIHH", 7, 31, _LARGEST_WRITE, _BIG_WRITES | _MAX_PAGES, 12, 9)
                answer += struct.pack("<IIH", _LARGEST_WRITE, 1, _LARGEST_WRITE >> 12) + bytes(34)
            case 18 | 25 | 38:  # RELEASE, FLUSH (of a descriptor that is closed), DESTROY: nothing to do
                pass
            case _:
                raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        return answer

    def _write(self, offset: int, content: memoryview) -> None:
        if self._fails_next or (self._refused is not None and self._refused in bytes(content)):
            self._fails_next = False
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        os.pwrite(self._image, content, offset)
        os.writev(self._log, [RECORD.pack(offset, len(content)), content])

    def _attributes(self) -> bytes:
        kept_for_s = 3600
        sizes = struct.pack("<QIIQQQ", kept_for_s, 0, 0, _OUR_NODE, self._size, self._size >> 9)
        return sizes + bytes(36) + struct.pack("<IIIIIII", 0o100600, 1, 0, 0, 0, 4096, 0)


def main(image: str, log: str, place: str) -> None:
    """Mount the disk and serve it, one request after the other."""
    disk = Disk(image, log)
    # What this process needs itself must never wait for what it serves.
    _libc.prctl(_SET_IO_FLUSHER, 1, 0, 0, 0)
    kernel = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={kernel},rootmode=100000,user_id=0,group_id=0".encode()
    if _libc.mount(b"powercut", os.fsencode(place), b"fuse", 0, options) != 0:
        sys.exit(os.strerror(ctypes.get_errno()))
    print("mounted", flush=True)
    orders = sys.stdin.fileno()
    heard = [orders, kernel]
    buffer = bytearray(_LARGEST_WRITE + 4096)
    while True:
        readable, _, _ = select.select(heard, [], [])
        if orders in readable:
            words = os.read(orders, 4096)
            for order in words.splitlines():
                disk.obey(order)
            heard = heard if words else [kernel]
            continue
        try:
            size = os.readv(kernel, [buffer])
        except OSError as error:
            if error.errno == errno.ENODEV:
                return
            raise
        _serve_one(disk, kernel, memoryview(buffer)[:size])


def _serve_one(disk: Disk, kernel: int, request: memoryview) -> None:
    _, operation, number = struct.unpack_from("<IIQ", request)
    if operation in {2, 36, 42}:  # FORGET, INTERRUPT, BATCH_FORGET: they want no answer
        return
    failed, content = 0, b""
    try:
        content = disk.answer(operation, request[40:])
    except OSError as error:
        failed = error.errno or errno.EIO
    os.writev(kernel, [struct.pack("<IiQ", 16 + len(content), -failed, number), content])


if __name__ == "__main__":
    main(*sys.argv[1:])
