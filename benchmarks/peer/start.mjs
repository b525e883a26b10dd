// Starts the reference server on a free port: node start.mjs [DATA_DIR]; without a folder it keeps data in memory.
import { DurableStreamTestServer } from "@durable-streams/server"

// Standard output has the ready line alone; what the server says of itself goes to standard error.
console.log = console.info = console.error

const dataDir = process.argv[2]
const server = new DurableStreamTestServer({ port: 0, host: "127.0.0.1", ...(dataDir ? { dataDir } : {}) })
await server.start()
process.stdout.write(`peer: serving ${server.baseUrl ?? server.url}/v1/stream\n`)
process.on("SIGTERM", () => {
  setTimeout(() => process.exit(0), 5000).unref()
  server.stop().finally(() => process.exit(0))
})
