// What the tests share: a real server in a process of its own, its streams, and ways to wait that end.

import assert from "node:assert/strict"
import { spawn } from "node:child_process"
import { createHash } from "node:crypto"
import { once } from "node:events"
import { mkdtemp, rm } from "node:fs/promises"
import { createServer } from "node:http"
import { tmpdir } from "node:os"
import path from "node:path"
import { after } from "node:test"
import { setTimeout as sleep } from "node:timers/promises"

export { sleep }

export const PYTHON = process.env.INTEROP_PYTHON ?? "python3"
const READY = /^durable-streams: serving (http:\/\/[^/\s]+)\/v1\/stream/m
export const WITHIN = 60_000 // milliseconds for anything that takes a fraction of a second on a machine at rest

/** `durable-streams serve` on SQLite. It can be killed and started again on the same port and folder. */
export class Server {
  #options
  #process
  #printed = ""
  port = 0

  constructor(folder, options) {
    this.folder = folder
    this.#options = options
  }

  get origin() {
    return `http://127.0.0.1:${this.port}`
  }

  url(stream) {
    return `${this.origin}/v1/stream/${stream}`
  }

  async start() {
    const where = ["--port", String(this.port), "--data-dir", path.join(this.folder, "data")]
    const environment = Object.entries(process.env).filter(([name]) => !name.startsWith("DURABLE_STREAMS_"))
    this.#printed = ""
    this.#process = spawn(PYTHON, ["-m", "durable_streams.cli", "serve", ...where, ...this.#options], {
      env: Object.fromEntries(environment),
      stdio: ["ignore", "pipe", "pipe"],
    })
    for (const output of [this.#process.stdout, this.#process.stderr]) {
      output.setEncoding("utf8").on("data", (text) => (this.#printed += text))
    }
    const ready = await until(() => READY.exec(this.#printed) ?? this.#ended(), "the server is ready", 60_000)
    assert.ok(Array.isArray(ready), `the server did not start:\n${this.#printed}`)
    this.port = Number(new URL(ready[1]).port)
    return this
  }

  #ended() {
    return this.#process.exitCode !== null || this.#process.signalCode !== null ? "ended" : undefined
  }

  /** SIGKILL, as a crash would have it. */
  async kill() {
    await this.#end("SIGKILL")
  }

  /** SIGTERM: the server ends in order. */
  async stop() {
    await this.#end("SIGTERM")
    assert.equal(this.#process.exitCode, 0, this.#printed)
  }

  async restart() {
    await this.kill()
    return this.start()
  }

  async #end(signal) {
    if (this.#ended()) return
    const exit = once(this.#process, "exit")
    this.#process.kill(signal)
    await exit
  }
}

/** A server for the tests of one file, ended after them; the options are those of the command line. */
export async function serve(...options) {
  return serveFolder(await mkdtemp(path.join(tmpdir(), "durable-streams-interop-")), ...options)
}

/** The same, on what is in the folder `data` of a folder; it is removed in the end. */
export async function serveFolder(folder, ...options) {
  const server = new Server(folder, options)
  after(async () => {
    await server.kill()
    await rm(folder, { recursive: true, force: true })
  })
  return server.start()
}

/** A web server of the test's own on a free port; gives its port. */
export async function listen(handler) {
  const server = createServer(handler)
  server.listen(0, "127.0.0.1")
  await once(server, "listening")
  after(() => {
    server.closeAllConnections()
    server.close()
  })
  return server.address().port
}

/** A web server that answers with what `answer(Request)` returns: how the handlers of web frameworks are written. */
export async function listenToFetch(answer) {
  const port = await listen(async (incoming, outgoing) => {
    const parts = []
    for await (const part of incoming) parts.push(part)
    const url = new URL(incoming.url, `http://127.0.0.1:${port}`)
    const body = parts.length ? Buffer.concat(parts) : undefined
    const response = await answer(new Request(url, { method: incoming.method, headers: incoming.headers, body }))
    outgoing.writeHead(response.status, Object.fromEntries(response.headers))
    outgoing.end(Buffer.from(await response.arrayBuffer()))
  })
  return `http://127.0.0.1:${port}`
}

/** Wait until `condition()` gives something that is not undefined or false; fails with what was waited for. */
export async function until(condition, what, within = WITHIN) {
  const deadline = Date.now() + within
  for (;;) {
    const found = await condition()
    if (found !== undefined && found !== false) return found
    if (Date.now() > deadline) assert.fail(`within ${within / 1000} s this did not happen: ${what}`)
    await sleep(10)
  }
}

/** The outcome of a promise that must settle. */
export async function settled(promise, what, within = WITHIN) {
  const timer = new AbortController()
  const late = sleep(within, undefined, { signal: timer.signal }).then(
    () => assert.fail(`within ${within / 1000} s this did not happen: ${what}`),
    () => {},
  )
  try {
    return await Promise.race([promise, late])
  } finally {
    timer.abort()
  }
}

let streams = 0

/** A stream's name that no other test uses. */
export function fresh(name) {
  streams += 1
  return `${name}-${process.pid}-${streams}`
}

/** `size` bytes that look random and are always the same. */
export function noise(size) {
  const bytes = Buffer.alloc(size)
  for (let at = 0, block = 0; at < size; block += 1) {
    at += createHash("sha512").update(String(block)).digest().copy(bytes, at)
  }
  return bytes
}

/** Whether two runs of bytes are the same, without a message of many megabytes where they are not. */
export function sameBytes(actual, expected) {
  assert.equal(actual.length, expected.length, "the lengths differ")
  assert.ok(Buffer.compare(Buffer.from(actual), Buffer.from(expected)) === 0, "the bytes differ")
}

/** Whether two lists are the same; names the first place where they are not. */
export function sameItems(actual, expected) {
  const at = expected.findIndex((one, index) => JSON.stringify(actual[index]) !== JSON.stringify(one))
  const shown = (list) => JSON.stringify(list[at])?.slice(0, 200)
  assert.ok(at === -1, `item ${at} is ${shown(actual)}, not ${shown(expected)}`)
  assert.equal(actual.length, expected.length, "there are other items behind them")
}

/** An offset as a client computes it that adds one to the number at its end. */
export function plusOne(offset) {
  const [log, position] = offset.split("_")
  return `${log}_${String(Number(position) + 1).padStart(position.length, "0")}`
}
