// OpenTelemetry's SDK for Node, as its variables of the environment configure it.
"use strict";

const { NodeSDK } = require("@opentelemetry/sdk-node");
const { HttpInstrumentation } = require("@opentelemetry/instrumentation-http");

new NodeSDK({ instrumentations: [new HttpInstrumentation()] }).start();
