// The official TypeScript client, @durable-streams/client.

import assert from "node:assert/strict"
import { execFile } from "node:child_process"
import { readFile } from "node:fs/promises"
import path from "node:path"
import { describe, test } from "node:test"
import { promisify } from "node:util"
import { DurableStream, IdempotentProducer, stream } from "@durable-streams/client"
import { EventSource } from "undici"
import { fresh, noise, plusOne, sameBytes, sameItems, serve, settled, sleep, until } from "./support.mjs"

const JSON_TYPE = "application/json"
const BINARY = "application/octet-stream"
const server = await serve("--long-poll-timeout", "2", "--sse-max-age", "3")

const create = (name, contentType, more = {}) =>
  DurableStream.create({ url: server.url(fresh(name)), contentType, ...more })

const numbers = (from, to) => Array.from({ length: to - from }, (_, index) => ({ n: from + index }))

/** Follow a JSON stream; `items` grows, `batches` has what came together, `stop()` ends it. */
async function follow(url, options) {
  const abort = new AbortController()
  const response = await stream({ url, signal: abort.signal, ...options })
  const seen = { items: [], batches: [], upToDate: false, closed: false, error: undefined }
  response.subscribeJson((batch) => {
    seen.items.push(...batch.items)
    seen.batches.push(batch)
    seen.upToDate = batch.upToDate
  })
  seen.end = response.closed.then(
    () => (seen.closed = true),
    (error) => (seen.error = error),
  )
  seen.stop = () => abort.abort()
  return seen
}

describe("creating, appending, reading", () => {
  test("JSON, in and out", async () => {
    const handle = await create("json", JSON_TYPE)
    await handle.append(JSON.stringify({ n: 0 }))
    await Promise.all(numbers(1, 100).map((one) => handle.append(JSON.stringify(one))))
    const response = await stream({ url: handle.url, live: false })
    assert.equal(response.contentType, JSON_TYPE)
    sameItems(await response.json(), numbers(0, 100))
  })

  test("text and bytes, in and out", async () => {
    const text = await create("text", "text/plain")
    await text.append("öne\r\n")
    await text.append("two\n")
    assert.equal(await (await stream({ url: text.url, live: false })).text(), "öne\r\ntwo\n")
    const bytes = await create("bytes", BINARY)
    await bytes.append(noise(100_000))
    await bytes.append(Uint8Array.of(0, 13, 10, 255))
    const body = await (await stream({ url: bytes.url, live: false })).body()
    sameBytes(body, Buffer.concat([noise(100_000), Buffer.from([0, 13, 10, 255])]))
  })

  test("a stream that is made again, and one that is another", async () => {
    const handle = await create("again", JSON_TYPE)
    await DurableStream.create({ url: handle.url, contentType: JSON_TYPE })
    await assert.rejects(DurableStream.create({ url: handle.url, contentType: "text/plain" }), { status: 409 })
  })

  test("initial data, time to live, metadata, deletion", async () => {
    const handle = await create("made", JSON_TYPE, { body: `[{"n":0},{"n":1}]`, ttlSeconds: 3600 })
    const head = await handle.head()
    assert.equal(head.exists, true)
    assert.equal(head.contentType, JSON_TYPE)
    assert.equal(head.streamClosed, false)
    const response = await stream({ url: handle.url, live: false })
    sameItems(await response.json(), numbers(0, 2))
    assert.equal(response.offset, head.offset)
    await handle.delete()
    assert.deepEqual(await DurableStream.head({ url: handle.url }), { exists: false })
    await assert.rejects(stream({ url: handle.url, live: false }), { status: 404 })
  })

  test("Stream-Seq goes forward only", async () => {
    const handle = await create("seq", "text/plain")
    await handle.append("a", { seq: "b" })
    await assert.rejects(handle.append("b", { seq: "a" }), { status: 409 })
    assert.equal(await (await stream({ url: handle.url, live: false })).text(), "a")
  })

  test("a body that is sent in chunks", async () => {
    const handle = await create("chunked", BINARY)
    async function* source() {
      for (let at = 0; at < 10; at += 1) yield noise(10_000)
    }
    await handle.appendStream(source())
    const body = await (await stream({ url: handle.url, live: false })).body()
    sameBytes(body, Buffer.concat(Array(10).fill(noise(10_000))))
  })

  test("a WritableStream that ends the stream", async () => {
    const handle = await create("writable", "text/plain")
    await ReadableStream.from(["one ", "two ", "three"]).pipeTo(handle.writable())
    const response = await stream({ url: handle.url, live: false })
    assert.equal(await response.text(), "one two three")
    assert.equal(response.streamClosed, true)
  })

  test("from now on", async () => {
    const handle = await create("now", JSON_TYPE)
    await handle.append(`{"n":0}`)
    const seen = await follow(handle.url, { offset: "now", live: "long-poll" })
    await until(() => seen.upToDate, "the reader is up to date")
    await handle.append(`{"n":1}`)
    await until(() => seen.items.length === 1, "the new record arrives")
    seen.stop()
    sameItems(seen.items, numbers(1, 2))
  })
})

describe("what is longer than one chunk of the server", () => {
  const size = 12 << 20

  test("e9: bytes, with one answer for all", async () => {
    const handle = await create("long-bytes", BINARY)
    const expected = noise(size)
    for (let at = 0; at < size; at += 3 << 20) await handle.append(expected.subarray(at, at + (3 << 20)))
    const response = await stream({ url: handle.url, live: false })
    sameBytes(await response.body(), expected)
    assert.equal(response.upToDate, true)
    assert.equal(response.offset, (await handle.head()).offset)
  })

  test("e9: bytes as a ReadableStream, from the middle", async () => {
    const handle = await create("long-middle", BINARY)
    await handle.append(noise(1000))
    const { offset } = await handle.head()
    const expected = noise(size)
    for (let at = 0; at < size; at += 4 << 20) await handle.append(expected.subarray(at, at + (4 << 20)))
    const parts = []
    for await (const part of (await stream({ url: handle.url, offset, live: false })).bodyStream()) parts.push(part)
    sameBytes(Buffer.concat(parts), expected)
  })

  test("e9: JSON, with one answer for all", async () => {
    const handle = await create("long-json", JSON_TYPE)
    const filling = "x".repeat(1000)
    const expected = Array.from({ length: 8000 }, (_, n) => ({ n, filling }))
    for (let at = 0; at < expected.length; at += 1000) {
      const batch = expected.slice(at, at + 1000)
      await fetch(handle.url, { method: "POST", headers: { "content-type": JSON_TYPE }, body: JSON.stringify(batch) })
    }
    sameItems(await (await stream({ url: handle.url, live: false })).json(), expected)
  })

  test("the same, read live", async () => {
    const handle = await create("long-live", JSON_TYPE)
    const filling = "x".repeat(1000)
    const expected = Array.from({ length: 4000 }, (_, n) => ({ n, filling }))
    await fetch(handle.url, { method: "POST", headers: { "content-type": JSON_TYPE }, body: JSON.stringify(expected) })
    for (const live of ["long-poll", "sse"]) {
      const seen = await follow(handle.url, { live })
      await until(() => seen.items.length >= expected.length && seen.upToDate, `all of it arrives by ${live}`)
      seen.stop()
      sameItems(seen.items, expected)
    }
  })
})

describe("following", { concurrency: true }, () => {
  for (const live of ["long-poll", "sse", true]) {
    test(`records as they come, once and in order, past the end of a connection: live: ${live}`, async () => {
      const handle = await create("live", JSON_TYPE)
      await handle.append(`{"n":0}`)
      const seen = await follow(handle.url, { live })
      for (const one of numbers(1, 50)) await handle.append(JSON.stringify(one))
      await until(() => seen.items.length === 50, "all records arrive")
      await sleep(4000)
      await handle.append(`{"n":50}`)
      await until(() => seen.items.length >= 51, "the last record arrives")
      seen.stop()
      sameItems(seen.items, numbers(0, 51))
    })
  }
})

for (const live of ["long-poll", "sse", true]) {
  describe(`following with live: ${live}`, () => {
    test("every batch ends at an offset to go on from", async () => {
      const handle = await create("batches", JSON_TYPE)
      const seen = await follow(handle.url, { live })
      for (const one of numbers(0, 20)) await handle.append(JSON.stringify(one))
      await until(() => seen.items.length === 20, "all records arrive")
      seen.stop()
      for (let taken = 0, at = 0; at < seen.batches.length; at += 1) {
        taken += seen.batches[at].items.length
        const rest = await stream({ url: handle.url, offset: seen.batches[at].offset, live: false })
        sameItems(await rest.json(), numbers(taken, 20))
      }
    })

    test("the end of the stream ends the reader", async () => {
      const handle = await create("closing", JSON_TYPE)
      const seen = await follow(handle.url, { live })
      await handle.append(`{"n":0}`)
      await until(() => seen.items.length === 1, "the first record arrives")
      await handle.close({ body: `{"n":1}` })
      await settled(seen.end, "the reader ends")
      assert.equal(seen.error, undefined)
      sameItems(seen.items, numbers(0, 2))
      assert.equal(seen.batches.at(-1).streamClosed, true)
    })
  })
}

describe("bytes and text, live", () => {
  for (const live of ["long-poll", "sse"]) {
    test(`bytes by ${live}`, async () => {
      const handle = await create("live-bytes", BINARY)
      const response = await stream({ url: handle.url, live })
      const parts = []
      response.subscribeBytes((chunk) => void parts.push(Buffer.from(chunk.data)))
      const expected = noise(300_000)
      for (let at = 0; at < expected.length; at += 100_000) await handle.append(expected.subarray(at, at + 100_000))
      await handle.close()
      await settled(response.closed, "the reader ends")
      // The client may say that it is closed before it has given out the last chunk.
      await until(() => parts.reduce((sum, part) => sum + part.length, 0) >= expected.length, "all bytes arrive")
      sameBytes(Buffer.concat(parts), expected)
    })
  }

  test("text by sse, with lines and characters of several bytes", async () => {
    const handle = await create("live-text", "text/plain")
    const response = await stream({ url: handle.url, live: "sse" })
    let text = ""
    response.subscribeText((chunk) => void (text += chunk.text))
    for (const one of ["ä", "\n", "data: x\n\n", "event: control\ndata: {}\n\n", "流"]) await handle.append(one)
    await handle.close()
    await settled(response.closed, "the reader ends")
    await until(() => text.endsWith("流"), "all text arrives")
    assert.equal(text, "ä\ndata: x\n\nevent: control\ndata: {}\n\n流")
  })
})

describe("closing", () => {
  test("twice is once, and nothing comes after it", async () => {
    const handle = await create("closed", "text/plain")
    await handle.append("all")
    const { finalOffset } = await handle.close()
    assert.deepEqual(await handle.close(), { finalOffset })
    assert.equal((await handle.head()).streamClosed, true)
    await assert.rejects(handle.append("more"), { status: 409 })
    const response = await stream({ url: handle.url })
    assert.equal(await response.text(), "all")
    assert.equal(response.streamClosed, true)
  })

  test("a stream that is made complete", async () => {
    const handle = await create("complete", "text/plain", { body: "all", closed: true })
    const response = await stream({ url: handle.url, live: "long-poll" })
    assert.equal(await settled(response.text(), "the read ends"), "all")
  })
})

describe("forks", () => {
  const fork = (name, source, more = {}) =>
    create(name, JSON_TYPE, { headers: { "Stream-Forked-From": new URL(source.url).pathname, ...more } })

  test("a fork goes its own way", async () => {
    const source = await create("source", JSON_TYPE, { body: `[{"n":0},{"n":1}]` })
    const branch = await fork("fork", source)
    await source.append(`{"n":"source"}`)
    const plain = new DurableStream({ url: branch.url, contentType: JSON_TYPE })
    const seen = await follow(branch.url, { live: "sse" })
    await plain.append(`{"n":2}`)
    await until(() => seen.items.length === 3, "the fork's own record arrives")
    seen.stop()
    sameItems(seen.items, numbers(0, 3))
  })

  test("a fork of a fork, from an earlier offset, after its source has gone", async () => {
    const source = await create("source", JSON_TYPE, { body: `[{"n":0}]` })
    const { offset } = await source.head()
    await source.append(`{"n":"later"}`)
    const branch = await fork("fork", source, { "Stream-Fork-Offset": offset })
    const twig = await fork("twig", branch)
    await source.delete()
    await branch.delete()
    await new DurableStream({ url: twig.url, contentType: JSON_TYPE }).append(`{"n":1}`)
    sameItems(await (await stream({ url: twig.url, live: false })).json(), numbers(0, 2))
  })
})

describe("a11: an offset inside an append", () => {
  for (const live of [false, "long-poll", "sse"]) {
    test(`reads from the append's start: JSON, live: ${live}`, async () => {
      const handle = await create("inside", JSON_TYPE, { body: `[{"n":0}]` })
      const { offset } = await handle.head()
      await handle.append(`{"n":1}`)
      await handle.close({ body: `{"n":2}` })
      const response = await stream({ url: handle.url, offset: plusOne(offset), live })
      sameItems(await settled(response.json(), "the read ends"), numbers(1, 3))
    })

    test(`reads from the append's start: bytes, live: ${live}`, async () => {
      const handle = await create("inside", BINARY, { body: Uint8Array.of(1, 2, 3) })
      const { offset } = await handle.head()
      await handle.append(Uint8Array.of(4, 5, 6))
      await handle.close({ body: Uint8Array.of(7, 8) })
      const response = await stream({ url: handle.url, offset: plusOne(offset), live })
      sameBytes(await settled(response.body(), "the read ends"), [4, 5, 6, 7, 8])
    })
  }
})

describe("the producer", () => {
  test("many records, in order, in few requests", async () => {
    const handle = await create("producer", JSON_TYPE)
    let requests = 0
    const counting = (...request) => ((requests += 1), fetch(...request))
    const producer = new IdempotentProducer(handle, "p", { fetch: counting, maxBatchBytes: 16 << 10 })
    for (const one of numbers(0, 5000)) producer.append(JSON.stringify(one))
    await producer.flush()
    await producer.detach()
    assert.ok(requests < 500, `${requests} requests`)
    sameItems(await (await stream({ url: handle.url, live: false })).json(), numbers(0, 5000))
  })

  test("a second one of the same name takes over", async () => {
    const handle = await create("fenced", JSON_TYPE)
    const errors = []
    const first = new IdempotentProducer(handle, "p", { onError: (error) => errors.push(error) })
    first.append(`{"n":0}`)
    await first.flush()
    const second = new IdempotentProducer(handle, "p", { epoch: 1, lingerMs: 0 })
    second.append(`{"n":1}`)
    await second.flush()
    first.append(`{"n":"late"}`)
    await first.flush().catch((error) => errors.push(error))
    assert.ok(errors.length > 0 && errors.every((error) => error.name === "StaleEpochError"), String(errors))
    const third = new IdempotentProducer(handle, "p", { autoClaim: true })
    third.append(`{"n":2}`)
    await third.flush()
    await third.close(`{"n":3}`)
    const response = await stream({ url: handle.url, live: false })
    sameItems(await response.json(), numbers(0, 4))
    assert.equal(response.streamClosed, true)
  })
})

/** What the official producer leaves to its caller: a request whose answer did not arrive is sent again. */
async function persistent(...request) {
  for (;;) {
    try {
      return await fetch(...request)
    } catch (error) {
      if (!(error instanceof TypeError)) throw error
      await sleep(20)
    }
  }
}

/** Follow a JSON stream; where a connection breaks, go on from the last batch's offset. */
async function followThroughout(url, live, items, signal) {
  for (let offset = "-1"; !signal.aborted; ) {
    try {
      const response = await stream({ url, live, offset, signal })
      response.subscribeJson((batch) => {
        items.push(...batch.items)
        offset = batch.offset
      })
      await response.closed
    } catch {
      await sleep(20)
    }
  }
}

// Last, as the server it kills is everybody's.
describe("the server is killed", () => {
  for (const live of ["long-poll", "sse"]) {
    test(`a producer and a reader by ${live} go on: every record once, in order`, async () => {
      const handle = await create("killed", JSON_TYPE)
      const options = { fetch: persistent, lingerMs: 20, onError: (error) => errors.push(error) }
      const [errors, items, abort] = [[], [], new AbortController()]
      const producer = new IdempotentProducer(handle, "p", options)
      const following = followThroughout(handle.url, live, items, abort.signal)
      let n = 0
      const more = setInterval(() => producer.append(JSON.stringify({ n: n++ })), 2)
      for (let round = 0; round < 3; round += 1) {
        await sleep(150)
        await server.restart()
      }
      clearInterval(more)
      await settled(producer.flush(), "what was appended is stored")
      await until(() => items.length >= n, "the reader has all of it")
      abort.abort()
      await settled(following, "the reader ends")
      assert.deepEqual(errors, [])
      sameItems(await (await stream({ url: handle.url, live: false })).json(), numbers(0, n))
      sameItems(items, numbers(0, n))
    })
  }
})

test("many streams over one EventSource of Node, with the server killed in the middle", async () => {
  const handles = await Promise.all([JSON_TYPE, "text/plain", BINARY].map((type) => create("many", type)))
  const names = handles.map(({ url }) => new URL(url).pathname.replace("/v1/stream/", ""))
  const written = [`{"n":1}`, "öne\r\n", Buffer.from([0, 13, 255])]
  const parts = new Map(names.map((name) => [name, []]))
  const offsets = new Map(names.map((name) => [name, "-1"]))
  const ended = []
  function follow() {
    const asked = names.map((name) => offsets.get(name)).join(",")
    const source = new EventSource(server.url(`__ds/follow?streams=${names.join(",")}&offsets=${asked}`))
    source.addEventListener("data", ({ data }) => {
      const { stream, offset, messages, text, base64 } = JSON.parse(data)
      offsets.set(stream, offset)
      parts.get(stream).push(messages ?? text ?? Buffer.from(base64, "base64"))
    })
    source.addEventListener("end", ({ data }) => ended.push(JSON.parse(data)))
    return source
  }
  let source = follow()
  for (const kill of [false, true, false]) {
    if (kill) await server.restart()
    for (const [index, handle] of handles.entries()) await handle.append(written[index])
    await until(() => names.every((name) => parts.get(name).length > 0), "the first records arrive")
  }
  for (const handle of handles) await handle.close()
  await until(() => {
    if (source.readyState !== EventSource.CLOSED) return false
    if (ended.length === names.length) return true
    // This one gives up where a server that starts refuses it; others try again. Its page goes on from the offsets.
    source = follow()
    return false
  }, "all are closed, and it does not connect again")
  const [json, text, bytes] = names.map((name) => parts.get(name))
  assert.deepEqual(json.flat(), [{ n: 1 }, { n: 1 }, { n: 1 }])
  assert.equal(text.join(""), written[1].repeat(3))
  sameBytes(Buffer.concat(bytes), Buffer.concat([written[2], written[2], written[2]]))
  assert.deepEqual(ended.map(({ closed }) => closed), [true, true, true])
})

test("the lines of docs/browsers.md, as they stand there", async () => {
  const page = await readFile(path.join(import.meta.dirname, "..", "..", "docs", "browsers.md"), "utf8")
  const [code] = [...page.matchAll(/^```js\n(.*?)^```$/gms)].map(([, code]) => code).filter((code) => code.includes("@durable-streams/client"))
  const typed = code.replace("http://127.0.0.1:4437/v1/stream", server.url("docs"))
  const options = { cwd: import.meta.dirname, encoding: "utf8", timeout: 60_000 }
  const { stdout } = await promisify(execFile)("node", ["--input-type=module", "-e", typed], options)
  assert.equal(stdout, "from TypeScript\n")
})
