// Runs the public conformance suite against the server at CONFORMANCE_URL (origin only, no path).
import { runConformanceTests } from "@durable-streams/server-conformance-tests"

const baseUrl = process.env.CONFORMANCE_URL
if (!baseUrl) throw new Error("CONFORMANCE_URL is not set; use tests/conformance/run")

runConformanceTests({ baseUrl, subscriptions: process.env.CONFORMANCE_SUBSCRIPTIONS === "1" })
