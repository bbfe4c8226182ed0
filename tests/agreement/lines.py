"""The lines that the readers take and give.

In: a request, `name=hex` for each header, the value's bytes in hexadecimal.
Out: `trace span decision`: the trace ID in 32 digits, the span ID in 16, and
`1`, `0` or `?` (left open, or not to be told). Without a context: `- -`.
"""

from dataclasses import dataclass

Headers = list[tuple[str, bytes]]


@dataclass(frozen=True)
class Reading:
    """What an implementation makes of a request."""

    # Trace ID and span ID in lower case; None without a context.
    context: tuple[str, str] | None
    # Sampled or not; None if that is left open, or cannot be told.
    sampled: bool | None

    def __str__(self) -> str:
        decision = {True: "1", False: "0", None: "?"}[self.sampled]
        return f"{'-'.join(self.context) if self.context else 'none'} {decision}"


def write(headers: Headers) -> str:
    return " ".join(f"{name}={value.hex()}" for name, value in headers)


def read_headers(line: str) -> Headers:
    words = (word.partition("=") for word in line.split())
    return [(name, bytes.fromhex(value)) for name, _, value in words]


def read(line: str) -> Reading:
    trace, span, decision = line.split()
    context = None if trace == "-" else (trace.lower().rjust(32, "0"), span.lower())
    return Reading(context, {"1": True, "0": False, "?": None}[decision])
