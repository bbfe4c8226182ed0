// The reading of OpenTelemetry for JavaScript. Lines: see lines.py.
const { ROOT_CONTEXT, TraceFlags, defaultTextMapGetter, isSpanContextValid, trace } = require("@opentelemetry/api");
const { B3Propagator } = require("@opentelemetry/propagator-b3");

const propagator = new B3Propagator();

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
