"""The lines that the readers take and give.

In: a request, `name=hex` for each header, the value's bytes in hexadecimal.
Out: `trace span parent decision`: the trace ID in 32 digits, span ID and parent
in 16, and `1`, `0` or `?` (left open). `-` stands for a context or a parent that
is not there, and `~` for what the implementation cannot tell.
"""

from dataclasses import dataclass

Headers = list[tuple[str, bytes]]


@dataclass(frozen=True)
class Reading:
    """What an implementation makes of a request."""

    # Trace ID and span ID in lower case; None without a context.
    context: tuple[str, str] | None
    # In lower case, `-` or `~`.
    parent: str
    # `1`, `0`, `?` or `~`.
    decision: str
    # False: no span at this hop, and the headers go on as they are (Envoy).
    span: bool = True

    def __str__(self) -> str:
        context = "-".join(self.context) if self.context else "none"
        return f"{context}, parent {self.parent}, decision {self.decision}"


def write(headers: Headers) -> str:
    return " ".join(f"{name}={value.hex()}" for name, value in headers)


def read_headers(line: str) -> Headers:
    words = (word.partition("=") for word in line.split())
    return [(name, bytes.fromhex(value)) for name, _, value in words]


def read(line: str) -> Reading:
    trace, span, parent, decision = line.split()
    assert decision in ("0", "1", "?", "~"), line
    context = None if trace == "-" else (trace.lower().rjust(32, "0"), span.lower())
    return Reading(context, parent.lower(), decision)
