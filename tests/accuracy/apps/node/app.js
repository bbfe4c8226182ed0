// A service on Node: one event loop, an agent that keeps connections.
// Arguments and behaviour as ../go/main.go has them.
"use strict";

const http = require("node:http");

const [port, outbound, variant, forward] = process.argv.slice(2);

const ROUTES = {
  "sequential": { a: [["h1"], ["h2"]], b: [["h2"], ["h3"]], c: [], d: [["h1"]] },
  "parallel-background": { a: [["h1"], ["h2"]], b: [["h2", "h3"], ["h1"]], c: [], d: [["h1"]] },
}[variant];
const PATHS = {
  h1: (user) => (user ? `/items?user=${user}` : "/items"),
  h2: (user) => (user ? `/profiles/${user}` : "/profiles"),
  h3: (user) => (user ? `/ratings/${user}/all` : "/ratings"),
};
const WORK_MS = Number(process.env.WORK_MS ?? 0.3);
const BACKGROUND_MS = 200;

// One agent for each service: it keeps connections by address, and here all
// services have the sidecar's.
const agents = Object.fromEntries(
  Object.keys(PATHS).map((host) => [host, new http.Agent({ keepAlive: true })]),
);

function spin(rounds) {
  let x = 2463534242;
  for (let n = 0; n < rounds; n++) {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
  }
  if (x === 0) throw new Error("xorshift never gives 0");
}

// How many rounds take a millisecond, once they are compiled.
function calibrate() {
  const rounds = 1e6;
  let best = Infinity;
  for (let n = 0; n < 30; n++) {
    const began = performance.now();
    spin(rounds);
    best = Math.min(best, performance.now() - began);
  }
  return rounds / best;
}
const roundsMs = calibrate();

function gaussian() {
  return Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
}

function work() {
  spin(Math.round(roundsMs * WORK_MS * Math.exp(0.5 * gaussian())));
}

function call(host, user, truth, incoming) {
  const headers = { "host": host, "content-length": truth.length };
  if (forward === "request-id" && incoming?.["x-request-id"]) {
    headers["x-request-id"] = incoming["x-request-id"];
  } else if (forward === "truth" && incoming) {
    headers["x-truth"] = truth.toString().split(" ")[0];
  }
  return new Promise((resolve, reject) => {
    const request = http.request(
      { host: "127.0.0.1", port: outbound, method: "POST", path: PATHS[host](user), headers, agent: agents[host] },
      (response) => {
        response.on("error", reject);
        response.on("end", () =>
          response.statusCode === 200 ? resolve() : reject(new Error(`${host}: status ${response.statusCode}`)),
        );
        response.resume();
      },
    );
    request.on("error", reject);
    request.end(truth);
  });
}

async function body(request) {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  return Buffer.concat(chunks);
}

async function serve(request, response) {
  const truth = await body(request);
  const parts = request.url.split("/");
  const user = parts[1] === "users" ? parts[2] : "";
  work();
  for (const hosts of ROUTES[parts.at(-1)]) {
    await Promise.all(hosts.map((host) => call(host, user, truth, request.headers)));
    work();
  }
  response.end("ok");
}

function background() {
  setTimeout(() => {
    call("h1", "", Buffer.from("background".padEnd(58)), null).catch((error) => console.error(error.message));
    background();
  }, -Math.log(1 - Math.random()) * BACKGROUND_MS);
}
if (variant === "parallel-background") background();

http
  .createServer((request, response) => {
    serve(request, response).catch((error) => {
      console.error(error.message);
      response.writeHead(502).end();
    });
  })
  .listen(Number(port), "127.0.0.1");
