// A service on Node: node:http for both sides. It knows nothing of tracing; sdk.js,
// required before it, adds that. Arguments and behaviour as ../python/app.py has them.
"use strict";

const http = require("node:http");

const [name, port, outbound, ...callees] = process.argv.slice(2);
const FORWARD = {
  "none": [],
  "request-id": ["x-request-id"],
  "all": [
    "x-request-id",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "x-ot-span-context",
    "b3",
    "traceparent",
    "tracestate",
  ],
};
// One agent for each service: it keeps connections by address, and here all services
// have the sidecar's.
const agents = Object.fromEntries(callees.map((callee) => [callee, new http.Agent({ keepAlive: true })]));

function call(callee, query, incoming, names) {
  const headers = { host: callee };
  for (const name of names) if (incoming[name] !== undefined) headers[name] = incoming[name];
  const path = `/${callee}${query}`;
  return new Promise((resolve, reject) => {
    http
      .get({ host: "127.0.0.1", port: outbound, path, headers, agent: agents[callee] }, (response) => {
        response.on("error", reject);
        response.on("end", () =>
          response.statusCode === 200 ? resolve() : reject(new Error(`${callee}: ${response.statusCode}`)),
        );
        response.resume();
      })
      .on("error", reject);
  });
}

async function serve(request, response) {
  const url = new URL(request.url, "http://app");
  if (url.pathname === `/${name}`) {
    const names = FORWARD[url.searchParams.get("forward")];
    for (const callee of callees) await call(callee, url.search, request.headers, names);
  }
  response.end("ok");
}

http
  .createServer((request, response) => {
    serve(request, response).catch((error) => {
      console.error(error.message);
      response.writeHead(502).end();
    });
  })
  .listen(Number(port), "127.0.0.1");
