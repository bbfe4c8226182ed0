// The readings of OpenTelemetry for JavaScript: of B3 in both forms (`b3`), of the
// single header alone (`single`), and of W3C Trace Context (`w3c`). Lines: see lines.py.
const { ROOT_CONTEXT, TraceFlags, defaultTextMapGetter, isSpanContextValid, trace } = require("@opentelemetry/api");
const { W3CTraceContextPropagator } = require("@opentelemetry/core");
const { B3Propagator } = require("@opentelemetry/propagator-b3");
// Not exported by itself; `B3Propagator` hands over to it where there is a `b3`.
const package_ = require("path").dirname(require.resolve("@opentelemetry/propagator-b3"));
const { B3SinglePropagator } = require(`${package_}/B3SinglePropagator.cjs`);

const propagator = {
  b3: () => new B3Propagator(),
  single: () => new B3SinglePropagator(),
  w3c: () => new W3CTraceContextPropagator(),
}[process.argv[2]]();

for (const line of require("fs").readFileSync(0, "latin1").split("\n").slice(0, -1)) {
  const headers = {};
  for (const word of line.split(" ").filter(Boolean)) {
    const [name, hex] = word.split("=");
    const value = Buffer.from(hex, "hex").toString("latin1");
    // As Node's http module hands over repeated headers.
    headers[name] = name in headers ? `${headers[name]}, ${value}` : value;
  }
  const span = trace.getSpanContext(propagator.extract(ROOT_CONTEXT, headers, defaultTextMapGetter));
  if (span && isSpanContextValid(span)) {
    console.log(`${span.traceId} ${span.spanId} ~ ${span.traceFlags & TraceFlags.SAMPLED}`);
  } else {
    console.log("- - ~ ~");
  }
}
