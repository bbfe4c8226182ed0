"""A small proxy-wasm host: Envoy's side of the ABI 0.2.1, as far as b3relay uses it.

A `Process` is one Envoy: what its workers share. A `Host` is one VM (one
worker), a `Plugin` one root context in it with its configuration, a `Stream`
one HTTP stream.

    process = Process()
    worker = Host(load(path), process)
    inbound = worker.plugin({"mode": "repair"}, direction=INBOUND)
    seen = inbound.stream().on_request_headers([("b3", b"0")])

Host calls are counted by name (`Host.calls`), and each can be made to fail
(`Host.fault`). A host call that is imported but missing here raises
`MissingHostCall` when the module makes it, not before: Rust's standard library
imports some that are never called. A callback that the module does not export
is not called, as in Envoy.
"""

from __future__ import annotations

import ctypes
import functools
import json
import random
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import wasmtime

Headers = list[tuple[str, bytes]]
"""Header pairs, in order. A name is Latin-1, so that any bytes can be one."""

# Statuses of the ABI.
OK, NOT_FOUND, BAD_ARGUMENT, CAS_MISMATCH, INTERNAL_FAILURE = 0, 1, 2, 8, 10
STATUSES = {
    1: "NotFound",
    2: "BadArgument",
    3: "SerializationFailure",
    4: "ParseFailure",
    5: "BadExpression",
    6: "InvalidMemoryAccess",
    7: "Empty",
    8: "CasMismatch",
    9: "ResultMismatch",
    10: "InternalFailure",
    11: "BrokenConnection",
    12: "Unimplemented",
}
CONTINUE, PAUSE = 0, 1
INBOUND, OUTBOUND = 1, 2  # envoy.config.core.v3.TrafficDirection
LEVELS = ("trace", "debug", "info", "warn", "error", "critical")

# The map types.
REQUEST_HEADERS, RESPONSE_HEADERS, RESPONSE_TRAILERS, CALL_HEADERS = 0, 2, 3, 6
PLUGIN_CONFIGURATION = 7  # the buffer type
COUNTER = 0  # the metric type
MASK = 0xFFFFFFFF


class Trapped(Exception):
    """The module trapped: Envoy would have lost the VM."""


class MissingHostCall(Exception):
    """The module made a host call that this host doesn't have."""


class BadPointer(Exception):
    """The module handed over memory that it doesn't have."""


def _engine() -> wasmtime.Engine:
    config = wasmtime.Config()
    config.consume_fuel = True
    return wasmtime.Engine(config)


_ENGINE = _engine()
_FUEL = 2**62
"""More than any test uses: about one for each instruction."""


@functools.cache
def _i32(number: int) -> wasmtime.Val:
    """Ready-made: wasmtime takes longer to convert a number than to make a call."""
    return wasmtime.Val.i32(number)


@functools.cache
def load(path: Path) -> wasmtime.Module:
    """The module, compiled once for all VMs."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: build it with `make wasm`")
    return wasmtime.Module.from_file(_ENGINE, str(path))


@dataclass
class Process:
    """What the VMs of one Envoy share: shared data, metrics, the time, entropy."""

    now_ns: int = 1_700_000_000_000_000_000
    data: dict[bytes, tuple[bytes, int]] = field(default_factory=dict)
    last_cas: int = 0
    metrics: Counter[str] = field(default_factory=Counter)
    random: random.Random = field(default_factory=lambda: random.Random(7))

    def wait(self, ms: int) -> None:
        """Moves the clock."""
        self.now_ns += ms * 1_000_000

    def set(self, key: bytes, value: bytes, cas: int) -> int:
        """As Envoy: 0 is unconditional, a missing key takes any number, and
        numbers are counted from 1 for the whole process."""
        if cas and key in self.data and self.data[key][1] != cas:
            return CAS_MISMATCH
        self.last_cas += 1
        self.data[key] = (value, self.last_cas)
        return OK

    def data_bytes(self) -> int:
        """Bytes of all shared values."""
        return sum(len(value) for value, _ in self.data.values())

    def counted(self) -> dict[str, int]:
        """The metrics that are not 0."""
        return {name: value for name, value in self.metrics.items() if value}


@dataclass(frozen=True)
class Reply:
    """A local reply, sent in place of the request's own response."""

    status: int
    body: str
    headers: Headers


@dataclass(frozen=True)
class Call:
    """An HTTP call of the module's own."""

    token: int
    cluster: str
    headers: Headers
    body: bytes
    timeout_ms: int


@dataclass(frozen=True)
class Seen:
    """What became of a request's headers."""

    action: int
    headers: Headers
    reply: Reply | None


class Host:
    """One VM."""

    def __init__(self, module: wasmtime.Module, process: Process | None = None) -> None:
        self.process = process or Process()
        self.calls: Counter[str] = Counter()
        """How often each host call was made."""
        self.fault: Callable[[str], int | None] | None = None
        """Given the name of a host call: the status to fail with, or None."""
        self.log: list[tuple[str, str]] = []
        """Level and text of each log line."""
        self.dead = False
        self.http_calls: list[Call] = []
        """HTTP calls that were not answered yet."""
        self._last_call = 0
        self._expressions: dict[tuple[int, int], str] = {}
        self._contexts: dict[int, Plugin | Stream] = {}
        self._last_context = 0
        self._current: Plugin | Stream | None = None
        self._metrics: dict[int, str] = {}
        self._base: int | None = None
        self._size = 0

        self._store = wasmtime.Store(_ENGINE)
        self._store.set_fuel(_FUEL)
        linker = wasmtime.Linker(_ENGINE)
        for wanted in module.imports:
            assert wanted.name is not None
            assert isinstance(wanted.type, wasmtime.FuncType), f"not a function: {wanted.name}"
            linker.define_func(
                wanted.module, wanted.name, wanted.type, self._bound(wanted.module, wanted.name)
            )
        exports = linker.instantiate(self._store, module).exports(self._store)
        functions = {
            name: each for name, each in exports.items() if isinstance(each, wasmtime.Func)
        }
        assert "proxy_abi_version_0_2_1" in functions, "the module is not one of the ABI 0.2.1"
        memory = exports["memory"]
        assert isinstance(memory, wasmtime.Memory)
        self._functions, self._memory = functions, memory
        self._allocate = functions["proxy_on_memory_allocate"]
        self.call("_initialize")

    def plugin(
        self,
        configuration: bytes | dict[str, object] = b"",
        direction: int | None = None,
        name: bytes | None = None,
    ) -> Plugin:
        """Configures a plugin; several may share the VM."""
        return Plugin(self, configuration, direction, name)

    def lines(self, level: str = "warn") -> list[str]:
        """The log lines of one level."""
        return [text for found, text in self.log if found == level]

    def instructions(self) -> int:
        """How many the module has executed, the copying of memory not counted."""
        return _FUEL - self._store.get_fuel()

    def memory_bytes(self) -> int:
        """The size of the module's memory."""
        return self._memory.data_len(self._store)

    def call(self, export: str, *args: int) -> Any:
        """Calls the module."""
        if self.dead:
            raise Trapped(f"{export}: this VM has trapped before")
        try:
            return self._functions[export](self._store, *map(_i32, args))
        except (wasmtime.Trap, wasmtime.WasmtimeError) as trap:
            self.dead = True
            panics = self.lines("critical")
            said = panics[-1] if panics else str(trap).splitlines()[0]
            raise Trapped(f"{export}: {said}") from trap
        except BaseException:
            self.dead = True
            raise

    def enter(self, context: Plugin | Stream, export: str, *args: int) -> Any:
        """Calls the module on behalf of a context; None if it has no such
        callback."""
        if export not in self._functions:
            return None
        before, self._current = self._current, context
        try:
            return self.call(export, context.id, *args)
        finally:
            self._current = before

    def register(self, context: Plugin | Stream) -> int:
        """Numbers a context."""
        self._last_context += 1
        self._contexts[self._last_context] = context
        return self._last_context

    def forget(self, context: Plugin | Stream) -> None:
        """The context is gone."""
        del self._contexts[context.id]

    def _bound(self, module: str, name: str) -> Callable[..., wasmtime.Val | None]:
        function = getattr(self, f"host_{name}", None)

        def bound(*args: int) -> wasmtime.Val | None:
            self.calls[name] += 1
            self._base = None
            if function is None:
                raise MissingHostCall(
                    f"the module called {module}.{name}, which this host does not have: "
                    f"add `host_{name}` to {Path(__file__).name}"
                )
            status = self.fault(name) if self.fault else None
            if status is None:
                status = function(*args)
            return None if status is None else _i32(status)

        return bound

    # The module's memory. It moves when it grows, so where it is is asked for
    # again whenever the module has run.

    def _address(self, at: int, size: int) -> int:
        if self._base is None:
            self._base = ctypes.addressof(self._memory.data_ptr(self._store).contents)
            self._size = self._memory.data_len(self._store)
        if at + size > self._size:
            raise BadPointer(f"{size} bytes at {at}")
        return self._base + at

    def _read(self, at: int, size: int) -> bytes:
        at, size = at & MASK, size & MASK
        return ctypes.string_at(self._address(at, size), size) if size else b""

    def _text(self, at: int, size: int) -> str:
        return self._read(at, size).decode("latin-1")

    def _write(self, at: int, value: bytes) -> None:
        at &= MASK
        ctypes.memmove(self._address(at, len(value)), value, len(value))

    def _number(self, at: int, number: int) -> int:
        self._write(at, struct.pack("<I", number))
        return OK

    def _give(self, value: bytes, data_at: int, size_at: int) -> int:
        """Hands bytes over, in memory that the module allocates. Nothing is a
        null pointer, as in Envoy."""
        at = 0
        if value:
            at = self._allocate(self._store, _i32(len(value))) & MASK
            self._base = None
            self._write(at, value)
        self._number(data_at, at)
        return self._number(size_at, len(value))

    # Host calls.

    def host_proxy_log(self, level: int, at: int, size: int) -> int:
        # Strict: a log line that is not UTF-8 is a fault of the module.
        self.log.append((LEVELS[level], self._read(at, size).decode("utf-8")))
        return OK

    def host_proxy_get_current_time_nanoseconds(self, at: int) -> int:
        self._write(at, struct.pack("<Q", self.process.now_ns))
        return OK

    def host_proxy_get_buffer_bytes(
        self, kind: int, start: int, most: int, data_at: int, size_at: int
    ) -> int:
        if kind != PLUGIN_CONFIGURATION or not isinstance(self._current, Plugin):
            return NOT_FOUND
        start, most = start & MASK, most & MASK
        return self._give(self._current.configuration[start : start + most], data_at, size_at)

    def host_proxy_get_property(self, at: int, size: int, data_at: int, size_at: int) -> int:
        assert self._current is not None
        value = self._current.properties.get(self._text(at, size).rstrip("\0").replace("\0", "."))
        return NOT_FOUND if value is None else self._give(value, data_at, size_at)

    def host_proxy_set_tick_period_milliseconds(self, period: int) -> int:
        # Of a stream, that of its plugin.
        current = self._current
        plugin = current.plugin if isinstance(current, Stream) else current
        assert plugin is not None
        plugin.tick_period_ms = period & MASK
        return OK

    def host_proxy_set_effective_context(self, number: int) -> int:
        return OK if number in self._contexts else BAD_ARGUMENT

    def host_proxy_call_foreign_function(
        self, at: int, size: int, argument_at: int, argument_size: int, data_at: int, size_at: int
    ) -> int:
        """Envoy's `expr_create` and `expr_evaluate`, for a list of properties."""
        name, argument = self._text(at, size), self._read(argument_at, argument_size)
        current = self._current
        plugin = current.plugin if isinstance(current, Stream) else current
        assert plugin is not None
        if name == "expr_create":
            number = len(self._expressions) + 1
            self._expressions[plugin.id, number] = argument.decode()
            return self._give(struct.pack("<I", number), data_at, size_at)
        if name != "expr_evaluate":
            return NOT_FOUND
        (number,) = struct.unpack("<I", argument)
        text = self._expressions.get((plugin.id, number))
        if text is None:
            return NOT_FOUND
        assert current is not None
        values = [_evaluated(one, current.properties) for one in text.strip("[]").split(", ")]
        if None in values:
            return INTERNAL_FAILURE
        pairs = [(value.decode("latin-1"), b"") for value in values if value is not None]
        return self._give(serialize(pairs), data_at, size_at)

    def host_proxy_http_call(
        self,
        cluster_at: int,
        cluster_size: int,
        headers_at: int,
        headers_size: int,
        body_at: int,
        body_size: int,
        _trailers_at: int,
        _trailers_size: int,
        timeout: int,
        token_at: int,
    ) -> int:
        if not cluster_size:
            return BAD_ARGUMENT
        self._last_call += 1
        self.http_calls.append(
            Call(
                self._last_call,
                self._text(cluster_at, cluster_size),
                deserialize(self._read(headers_at, headers_size)),
                self._read(body_at, body_size),
                timeout,
            )
        )
        return self._number(token_at, self._last_call)

    def _handed(self, kind: int) -> Stream | None:
        # Envoy too has the headers only while it hands them over.
        if isinstance(self._current, Stream) and self._current.handing == kind:
            return self._current
        return None

    def host_proxy_get_header_map_value(
        self, kind: int, at: int, size: int, data_at: int, size_at: int
    ) -> int:
        current = self._current
        assert current is not None
        if current.handing != kind:
            return BAD_ARGUMENT
        name = self._text(at, size)
        values = [value for known, value in current.headers if known == name]
        return self._give(values[0], data_at, size_at) if values else NOT_FOUND

    def host_proxy_get_header_map_pairs(self, kind: int, data_at: int, size_at: int) -> int:
        stream = self._handed(kind)
        return BAD_ARGUMENT if stream is None else self._give(stream.map(), data_at, size_at)

    def host_proxy_remove_header_map_value(self, kind: int, at: int, size: int) -> int:
        stream = self._handed(kind)
        if stream is None:
            return BAD_ARGUMENT
        name = self._text(at, size).lower()
        stream.headers = [pair for pair in stream.headers if pair[0] != name]
        return OK

    def host_proxy_add_header_map_value(
        self, kind: int, at: int, size: int, value_at: int, value_size: int
    ) -> int:
        stream = self._handed(kind)
        if stream is None:
            return BAD_ARGUMENT
        name = self._text(at, size).lower()
        stream.headers.append((name, self._read(value_at, value_size)))
        return OK

    def host_proxy_replace_header_map_value(
        self, kind: int, at: int, size: int, value_at: int, value_size: int
    ) -> int:
        # All of that name go, as in Envoy's `setCopy`.
        status = self.host_proxy_remove_header_map_value(kind, at, size)
        return status or self.host_proxy_add_header_map_value(kind, at, size, value_at, value_size)

    def host_proxy_get_shared_data(
        self, at: int, size: int, data_at: int, size_at: int, cas_at: int
    ) -> int:
        found = self.process.data.get(self._read(at, size))
        if found is None:
            return NOT_FOUND
        self._number(cas_at, found[1])
        return self._give(found[0], data_at, size_at)

    def host_proxy_set_shared_data(
        self, at: int, size: int, value_at: int, value_size: int, cas: int
    ) -> int:
        value = self._read(value_at, value_size)
        return self.process.set(self._read(at, size), value, cas & MASK)

    def host_proxy_define_metric(self, kind: int, at: int, size: int, id_at: int) -> int:
        if kind != COUNTER:
            return BAD_ARGUMENT
        # As in Envoy, each definition gets a number, and equal names one value.
        number = len(self._metrics) + 1
        self._metrics[number] = self._text(at, size)
        self.process.metrics.setdefault(self._metrics[number], 0)
        return self._number(id_at, number)

    def host_proxy_increment_metric(self, number: int, offset: int) -> int:
        if number not in self._metrics:
            return NOT_FOUND
        if offset <= 0:
            return BAD_ARGUMENT  # as Envoy, for a counter
        self.process.metrics[self._metrics[number]] += offset
        return OK

    def host_proxy_send_local_response(
        self,
        status: int,
        _details_at: int,
        _details_size: int,
        body_at: int,
        body_size: int,
        headers_at: int,
        headers_size: int,
        _grpc: int,
    ) -> int:
        if not isinstance(self._current, Stream):
            return BAD_ARGUMENT
        body = self._read(body_at, body_size).decode("utf-8")
        headers = deserialize(self._read(headers_at, headers_size))
        self._current.reply = Reply(status, body, headers)
        return OK

    # WASI, as far as Rust's standard library calls it. The environment is empty.

    def host_random_get(self, at: int, size: int) -> int:
        self._write(at, self.process.random.randbytes(size & MASK))
        return OK

    def host_clock_time_get(self, _clock: int, _precision: int, at: int) -> int:
        return self.host_proxy_get_current_time_nanoseconds(at)

    def host_environ_sizes_get(self, count_at: int, size_at: int) -> int:
        self._number(count_at, 0)
        return self._number(size_at, 0)

    def host_environ_get(self, _pointers_at: int, _text_at: int) -> int:
        return OK

    def host_fd_write(self, fd: int, vectors_at: int, vectors: int, written_at: int) -> int:
        if fd not in (1, 2):
            return 8  # EBADF
        text = b""
        for number in range(vectors):
            at, size = struct.unpack("<II", self._read(vectors_at + 8 * number, 8))
            text += self._read(at, size)
        # Envoy logs what a module prints, standard error as an error.
        self.log.append(("info" if fd == 1 else "error", text.decode("utf-8", "replace")))
        return self._number(written_at, len(text))

    def host_proc_exit(self, code: int) -> None:
        raise Trapped(f"proc_exit({code})")


class Plugin:
    """A plugin's root context, and the listener that it is for."""

    def __init__(
        self,
        host: Host,
        configuration: bytes | dict[str, object],
        direction: int | None,
        name: bytes | None = None,
    ) -> None:
        if isinstance(configuration, dict):
            configuration = json.dumps(configuration).encode()
        self.host = host
        self.configuration = configuration
        self.properties: dict[str, bytes] = {}
        if direction is not None:
            self.properties["xds.listener_direction"] = struct.pack("<Q", direction)
        if direction == INBOUND:
            # Behind the router.
            self.properties["upstream.address"] = b"127.0.0.1:9080"
        if name is not None:
            self.properties["plugin_name"] = name
        self.tick_period_ms = 0
        """How often it wants to be ticked; 0 for never."""
        self.headers: Headers = []
        self.handing: int | None = None
        self.id = host.register(self)
        host.enter(self, "proxy_on_context_create", 0)
        assert host.enter(self, "proxy_on_vm_start", 0) in (1, None)
        self.configured = bool(host.enter(self, "proxy_on_configure", len(configuration)))

    def stream(self) -> Stream:
        """A new stream."""
        return Stream(self)

    def request(self, headers: Headers) -> Seen:
        """The request headers of a stream that stays open."""
        return self.stream().on_request_headers(headers)

    def tick(self) -> None:
        """The period it asked for has passed."""
        self.host.enter(self, "proxy_on_tick")

    def answer(self, call: Call, status: bytes) -> None:
        """The HTTP call was answered."""
        self.host.http_calls.remove(call)
        self.headers, self.handing = [(":status", status)], CALL_HEADERS
        self.host.enter(self, "proxy_on_http_call_response", call.token, 1, 0, 0)
        self.handing = None


class Stream:
    """One HTTP stream."""

    def __init__(self, plugin: Plugin) -> None:
        self.host = plugin.host
        self.plugin = plugin
        self.properties = plugin.properties
        self.headers: Headers = []
        self.handing: int | None = None
        """The map of headers that is being handed over now."""
        self.reply: Reply | None = None
        self._raw_map: bytes | None = None
        self.id = self.host.register(self)
        self.host.enter(self, "proxy_on_context_create", plugin.id)

    def map(self) -> bytes:
        """The serialised headers."""
        if self._raw_map is not None:
            return self._raw_map
        return serialize(self.headers)

    def on_request_headers(self, headers: Headers, raw_map: bytes | None = None) -> Seen:
        """Hands the request headers over. `raw_map` replaces what the module
        gets to read of them."""
        self._raw_map = raw_map
        return self._hand("proxy_on_request_headers", REQUEST_HEADERS, headers)

    def on_response_headers(self, headers: Headers) -> Seen:
        """Hands the response headers over."""
        self._raw_map = None
        return self._hand("proxy_on_response_headers", RESPONSE_HEADERS, headers)

    def on_response_trailers(self, trailers: Headers) -> None:
        """Hands the response trailers over."""
        self.headers, self.handing = list(trailers), RESPONSE_TRAILERS
        action = self.host.enter(self, "proxy_on_response_trailers", len(trailers))
        self.handing = None
        assert action in (CONTINUE, None)

    def _hand(self, export: str, kind: int, headers: Headers) -> Seen:
        self.headers, self.handing = list(headers), kind
        action = self.host.enter(self, export, len(headers), 1)
        self.handing = None
        assert action in (CONTINUE, PAUSE)
        return Seen(action, self.headers, self.reply)

    def done(self) -> None:
        """The stream has ended."""
        assert self.host.enter(self, "proxy_on_done") in (1, None)

    def log(self) -> None:
        """The access log is written (not for upstream filters)."""
        self.host.enter(self, "proxy_on_log")

    def delete(self) -> None:
        """The context goes."""
        self.host.enter(self, "proxy_on_delete")
        self.host.forget(self)

    def end(self, answered: bool = True) -> None:
        """The end of a stream as an upstream filter sees it."""
        if answered and self.reply is None:
            self.on_response_headers([(":status", b"200")])
        self.done()
        self.delete()


def _evaluated(expression: str, properties: dict[str, bytes]) -> bytes | None:
    """A property in CEL, or `has(property) ? property : value`."""
    condition, _, rest = expression.partition(" ? ")
    name, _, default = rest.partition(" : ")
    found = properties.get(name or condition)
    if found is not None or not name:
        return found
    return default.strip("'").encode() if default.endswith("'") else struct.pack("<q", 0)


def serialize(headers: Headers) -> bytes:
    """As Envoy: a count, all lengths, then names and values, each ended by a
    zero byte. No headers are no bytes."""
    if not headers:
        return b""
    pairs = [(name.encode("latin-1"), value) for name, value in headers]
    lengths = [length for name, value in pairs for length in (len(name), len(value))]
    text = b"".join(name + b"\0" + value + b"\0" for name, value in pairs)
    return struct.pack(f"<{1 + len(lengths)}I", len(pairs), *lengths) + text


def deserialize(data: bytes) -> Headers:
    """The inverse of `serialize`."""
    if not data:
        return []
    (count,) = struct.unpack_from("<I", data)
    lengths = struct.unpack_from(f"<{2 * count}I", data, 4)
    at, texts = 4 + 8 * count, []
    for length in lengths:
        texts.append(data[at : at + length])
        at += length + 1
    assert at == len(data), "a header map with bytes left over"
    pairs = zip(texts[::2], texts[1::2], strict=True)
    return [(name.decode("latin-1"), value) for name, value in pairs]
