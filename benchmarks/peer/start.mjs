// Starts the reference server on a free port: node start.mjs [DATA_DIR]; without a folder it keeps data in memory.
import { DurableStreamTestServer } from "@durable-streams/server"

const dataDir = process.argv[2]
const server = new DurableStreamTestServer({ port: 0, host: "127.0.0.1", ...(dataDir ? { dataDir } : {}) })
await server.start()
console.log(`peer: serving ${server.baseUrl ?? server.url}/v1/stream`)
process.on("SIGTERM", () => {
  setTimeout(() => process.exit(0), 5000).unref()
  server.stop().finally(() => process.exit(0))
})
