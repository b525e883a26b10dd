// Pages in headless Chromium: what its cache, CORS and EventSource make of our answers.

import assert from "node:assert/strict"
import { spawn } from "node:child_process"
import { mkdtemp, readFile, rm } from "node:fs/promises"
import { tmpdir } from "node:os"
import path from "node:path"
import { after, describe, test } from "node:test"
import { chromium } from "playwright-core"
import { fresh, listen, PYTHON, serve, sleep, until } from "./support.mjs"

// A record that a cache kept back was seen after 58.7 s; without one it takes milliseconds.
const SEEN_WITHIN = 10_000
const JSON_TYPE = "application/json"
const FLAGS = [
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--host-resolver-rules=MAP *.example 127.0.0.1", // names that are not this machine's own
]

const folder = await mkdtemp(path.join(tmpdir(), "durable-streams-chromium-"))
const browser = await chromium.launchPersistentContext(folder, {
  executablePath: process.env.INTEROP_CHROMIUM,
  args: FLAGS,
})
after(async () => {
  await browser.close()
  await rm(folder, { recursive: true, force: true, maxRetries: 5 })
})

const packages = path.join(import.meta.dirname, "node_modules")
const IMPORTS = {
  "@durable-streams/client": "/packages/@durable-streams/client/dist/index.js",
  "@microsoft/fetch-event-source": "/packages/@microsoft/fetch-event-source/lib/esm/index.js",
  fastq: "/fastq.js",
}
const port = await listen(async (request, answer) => {
  if (request.url.startsWith("/packages/")) {
    const name = request.url.endsWith(".js") ? request.url : `${request.url}.js`
    answer.setHeader("content-type", "text/javascript")
    answer.end(await readFile(path.join(packages, name.slice("/packages/".length))))
  } else {
    answer.setHeader("content-type", "text/html")
    answer.end(`<!doctype html><script type="importmap">${JSON.stringify({ imports: IMPORTS })}</script>`)
  }
})
const LOCAL = `http://127.0.0.1:${port}`
const FOREIGN = `http://foreign.example:${port}`

const server = await serve("--long-poll-timeout", "2", "--sse-max-age", "2")

async function page(t, origin = LOCAL) {
  const opened = await browser.newPage()
  t.after(() => opened.close())
  await opened.goto(`${origin}/`)
  return opened
}

async function create(url, contentType = JSON_TYPE, body = undefined) {
  const created = await fetch(url, { method: "PUT", headers: { "content-type": contentType }, body })
  assert.equal(created.status, 201)
  return url
}

async function append(url, body, contentType = JSON_TYPE) {
  const appended = await fetch(url, { method: "POST", headers: { "content-type": contentType }, body })
  assert.equal(appended.status, 204)
  return appended.headers.get("stream-next-offset")
}

const stored = async (url) => (await fetch(url)).text()

describe("a page of another origin", () => {
  for (const offset of ["-1", "each answer's own"]) {
    test(`a4: a page that polls sees a new record at once, offset: ${offset}`, async (t) => {
      const url = await create(server.url(fresh("polled")), JSON_TYPE, `[0]`)
      const polling = await page(t)
      await polling.evaluate(
        async ([url, fixed]) => {
          window.seen = new Set()
          let offset = "-1"
          const poll = async () => {
            const answer = await fetch(`${url}?offset=${fixed ? "-1" : offset}`)
            offset = answer.headers.get("stream-next-offset")
            for (const item of await answer.json()) window.seen.add(item)
            setTimeout(poll, 20)
          }
          await poll()
        },
        [url, offset === "-1"],
      )
      for (let n = 1; n <= 5; n += 1) {
        await append(url, String(n))
        const seen = () => polling.evaluate((n) => window.seen.has(n), n)
        await until(seen, `the page sees record ${n}`, SEEN_WITHIN)
      }
    })
  }

  test("a4: HEAD says where the stream ends now", async (t) => {
    const url = await create(server.url(fresh("heads")))
    const asking = await page(t)
    for (let n = 0; n < 5; n += 1) {
      const offset = await append(url, String(n))
      const said = await asking.evaluate(
        async (url) => (await fetch(url, { method: "HEAD" })).headers.get("stream-next-offset"),
        url,
      )
      assert.equal(said, offset)
      await asking.evaluate(async (url) => (await fetch(url)).text(), url) // what HEAD could be answered from
    }
  })

  test("a4: the end of a stream is seen at once", async (t) => {
    const url = await create(server.url(fresh("ended")), JSON_TYPE, `[0]`)
    const asking = await page(t)
    const isClosed = () =>
      asking.evaluate(async (url) => (await fetch(`${url}?offset=-1`)).headers.get("stream-closed"), url)
    assert.equal(await isClosed(), null)
    await fetch(url, { method: "POST", headers: { "stream-closed": "true" } })
    await until(async () => (await isClosed()) === "true", "the page sees the end", SEEN_WITHIN)
  })

  test("e10: headers of the application's own pass the preflight, and ours can be read", async (t) => {
    const url = server.url(fresh("headers"))
    const asking = await page(t)
    const said = await asking.evaluate(
      async ([url, type]) => {
        const own = { "x-trace-id": "1", "x-tenant": "a b", traceparent: "00-1-1-01", authorization: "Bearer t" }
        const headers = { ...own, "content-type": type }
        const producer = { "producer-id": "p", "producer-epoch": "0", "producer-seq": "0" }
        const created = await fetch(url, { method: "PUT", headers })
        const appended = await fetch(url, { method: "POST", headers: { ...headers, ...producer }, body: "[1]" })
        const read = await fetch(`${url}?offset=-1`, { headers: { ...own, "if-none-match": `"other"` } })
        const deleted = await fetch(url, { method: "DELETE", headers: own })
        return {
          statuses: [created.status, appended.status, read.status, deleted.status],
          producer: [appended.headers.get("producer-epoch"), appended.headers.get("producer-seq")],
          read: ["stream-next-offset", "stream-up-to-date", "etag"].map((name) => read.headers.has(name)),
          location: created.headers.has("location"),
        }
      },
      [url, JSON_TYPE],
    )
    assert.deepEqual(said, {
      statuses: [201, 200, 200, 204],
      producer: ["0", "0"],
      read: [true, true, true],
      location: true,
    })
  })

  test("the official client in a page: create, append, follow", async (t) => {
    const following = await page(t)
    const url = server.url(fresh("client"))
    await following.evaluate(
      async ([url, type]) => {
        const { DurableStream, stream } = await import("@durable-streams/client")
        const handle = await DurableStream.create({ url, contentType: type, warnOnHttp: false })
        await handle.append("0")
        window.seen = { "long-poll": [], sse: [] }
        for (const live of ["long-poll", "sse"]) {
          const response = await stream({ url, live, warnOnHttp: false })
          response.subscribeJson((batch) => void window.seen[live].push(...batch.items))
        }
      },
      [url, JSON_TYPE],
    )
    for (let n = 1; n <= 3; n += 1) {
      await append(url, String(n))
      const seen = () =>
        following.evaluate((n) => Object.values(window.seen).every((items) => items.includes(n)), n)
      await until(seen, `the page sees record ${n}`, SEEN_WITHIN)
    }
    await sleep(2500) // past the end of a poll, and of an event stream
    await append(url, "4")
    await until(() => following.evaluate(() => Object.values(window.seen).every((items) => items.includes(4))), "4")
    const expected = [0, 1, 2, 3, 4]
    assert.deepEqual(await following.evaluate(() => window.seen), { "long-poll": expected, sse: expected })
  })
})

describe("EventSource", () => {
  /** Open one; `seen.items`, `seen.offsets`, `seen.opened` and `seen.state` go on in the page. */
  async function listenTo(t, url) {
    const listening = await page(t)
    await listening.evaluate((url) => {
      const source = new EventSource(url)
      window.seen = { items: [], offsets: [], opened: 0 }
      Object.defineProperty(window.seen, "state", { enumerable: true, get: () => source.readyState })
      source.onopen = () => (window.seen.opened += 1)
      source.addEventListener("data", (event) => window.seen.items.push(...JSON.parse(event.data)))
      source.addEventListener("control", (event) => window.seen.offsets.push(JSON.parse(event.data).streamNextOffset))
    }, url)
    return () => listening.evaluate(() => ({ ...window.seen }))
  }

  test("e11: records are not repeated where it connects again", async (t) => {
    const url = await create(server.url(fresh("events")), JSON_TYPE, `[0,1]`)
    const seen = await listenTo(t, `${url}?offset=-1&live=sse`)
    await append(url, "2")
    await until(async () => (await seen()).items.includes(2), "the records arrive")
    await until(async () => (await seen()).opened >= 2, "it connects again after the end of an event stream")
    await append(url, "3")
    await until(async () => (await seen()).items.includes(3), "what came meanwhile arrives")
    const { items, offsets } = await seen()
    assert.deepEqual(items, [0, 1, 2, 3])
    assert.equal(offsets.at(-1), (await fetch(url, { method: "HEAD" })).headers.get("stream-next-offset"))
  })

  test("e11: records are not repeated after the server was killed", async (t) => {
    const url = await create(server.url(fresh("killed")), JSON_TYPE, `[0,1]`)
    const seen = await listenTo(t, `${url}?offset=-1&live=sse`)
    await append(url, "2")
    await until(async () => (await seen()).items.includes(2), "the records arrive")
    const { opened } = await seen()
    await server.restart()
    await append(url, "3")
    await until(async () => (await seen()).items.includes(3), "what came after the restart arrives")
    assert.ok((await seen()).opened > opened)
    assert.deepEqual((await seen()).items, [0, 1, 2, 3])
  })

  test("e11: it ends with the stream", async (t) => {
    const url = await create(server.url(fresh("closed")), JSON_TYPE, `[0,1]`)
    const seen = await listenTo(t, `${url}?offset=-1&live=sse`)
    await until(async () => (await seen()).items.length === 2, "the records arrive")
    await fetch(url, { method: "POST", headers: { "stream-closed": "true", "content-type": JSON_TYPE }, body: "2" })
    await until(async () => (await seen()).state === 2, "it is closed, and does not connect again")
    assert.deepEqual((await seen()).items, [0, 1, 2])
  })
})

test("many streams over one EventSource: each record once, with the server killed in the middle", async (t) => {
  const names = Array.from({ length: 8 }, () => fresh("many")) // more than a browser has connections for
  for (const name of names) await create(server.url(name), JSON_TYPE, `[0]`)
  const following = await page(t)
  const query = new URLSearchParams({ streams: names.map(encodeURIComponent).join(",") })
  await following.evaluate((url) => {
    const source = new EventSource(url)
    window.seen = { items: {}, ended: [] }
    Object.defineProperty(window.seen, "state", { enumerable: true, get: () => source.readyState })
    source.addEventListener("data", ({ data }) => {
      const { stream, messages } = JSON.parse(data)
      window.seen.items[stream] = [...(window.seen.items[stream] ?? []), ...messages]
    })
    source.addEventListener("end", ({ data }) => window.seen.ended.push(JSON.parse(data)))
  }, server.url(`__ds/follow?${query}`))
  const seen = () => following.evaluate(() => ({ ...window.seen }))
  const all = (items) => names.every((name) => items[name]?.length >= length)
  let length = 1
  for (const kill of [true, false]) {
    await until(async () => all((await seen()).items), `${length} records of each stream arrive`)
    if (kill) await server.restart()
    for (const name of names) await append(server.url(name), `${length}`)
    length += 1
  }
  await until(async () => all((await seen()).items), "the last records arrive")
  const closing = { method: "POST", headers: { "stream-closed": "true" } }
  for (const name of names) await fetch(server.url(name), closing)
  await until(async () => (await seen()).state === 2, "all are closed, and it does not connect again")
  const { items, ended } = await seen()
  for (const name of names) assert.deepEqual(items[name], [0, 1, 2])
  assert.deepEqual(ended.map(({ stream, closed }) => [stream, closed]).sort(), names.map((name) => [name, true]).sort())
})

describe("who may write", () => {
  /** Try everything a page can do to change a stream; says what it could read of the answers. */
  const attack = (attacking, url) =>
    attacking.evaluate(async (url) => {
      const tried = async (...request) => {
        try {
          const answer = await fetch(...request)
          return answer.type === "opaque" ? "opaque" : answer.status
        } catch {
          return "refused"
        }
      }
      const json = { "content-type": "application/json" }
      const said = {
        simple: await tried(url, { method: "POST", mode: "no-cors", body: "bad" }),
        post: await tried(url, { method: "POST", body: "bad" }),
        json: await tried(url, { method: "POST", headers: json, body: `["bad"]` }),
        put: await tried(`${url}-made`, { method: "PUT" }),
        delete: await tried(url, { method: "DELETE" }),
        read: await tried(`${url}?offset=-1`),
        beacon: navigator.sendBeacon(url, new Blob(["bad"], { type: "text/plain" })),
      }
      const form = document.createElement("form")
      Object.assign(form, { method: "POST", action: url, enctype: "text/plain", target: "answer" })
      form.append(Object.assign(document.createElement("input"), { name: "bad", value: "bad" }))
      const frame = Object.assign(document.createElement("iframe"), { name: "answer" })
      document.body.append(frame, form)
      const answered = new Promise((resolve) => frame.addEventListener("load", resolve))
      form.submit()
      await answered
      return said
    }, url)

  for (const contentType of ["text/plain", JSON_TYPE]) {
    test(`g12: a foreign page can change nothing on a local server: ${contentType}`, async (t) => {
      const content = contentType === JSON_TYPE ? `["good"]` : "good"
      const url = await create(server.url(fresh("attacked")), contentType, content)
      const said = await attack(await page(t, FOREIGN), url)
      assert.equal(await stored(url), content)
      assert.equal((await fetch(`${url}-made`)).status, 404)
      for (const kind of ["post", "json", "put", "delete", "read"]) assert.equal(said[kind], "refused", kind)
    })
  }

  test("g12: a foreign name that points to the server is not the server's", async (t) => {
    const url = await create(server.url(fresh("rebound")), "text/plain", "good")
    const rebound = url.replace("127.0.0.1", "foreign.example")
    const attacking = await browser.newPage()
    t.after(() => attacking.close())
    const answer = await attacking.goto(rebound)
    assert.equal(answer.status(), 403)
    const written = await attacking.evaluate(async (url) => {
      const headers = { "content-type": "text/plain" }
      return (await fetch(url, { method: "POST", headers, body: "bad" })).status
    }, rebound)
    assert.equal(written, 403)
    assert.equal(await stored(url), "good")
  })

  test("g12: a page of this machine may write, by default", async (t) => {
    const url = await create(server.url(fresh("local")), "text/plain", "good")
    const writing = await page(t, `http://localhost:${port}`)
    const headers = { "content-type": "text/plain" }
    const appended = ([url, headers]) => fetch(url, { method: "POST", headers, body: ", too" }).then((it) => it.status)
    assert.equal(await writing.evaluate(appended, [url, headers]), 204)
    assert.equal(await stored(url), "good, too")
  })

  test("g12: an origin that is allowed may do everything, another one nothing", async (t) => {
    const open = await serve("--cors-origins", FOREIGN, "--cors-credentials")
    const url = open.url(fresh("allowed"))
    const writing = await page(t, FOREIGN)
    const said = await writing.evaluate(async (url) => {
      const headers = { "content-type": "text/plain", "x-own": "1" }
      const [put, post] = [{ method: "PUT", headers }, { method: "POST", headers, body: "good" }]
      const statuses = [(await fetch(url, put)).status, (await fetch(url, post)).status]
      const read = await fetch(`${url}?offset=-1`, { credentials: "include" })
      return [...statuses, read.status, await read.text()]
    }, url)
    assert.deepEqual(said, [201, 204, 200, "good"])
    const other = await attack(await page(t, `http://other.example:${port}`), url)
    assert.equal(other.read, "refused")
    assert.equal(await stored(url), "good")
  })
})

test("g10: a page that is stored in a stream runs nothing", async (t) => {
  const script = `<!doctype html><title>quiet</title><script>document.title = "ran"</script>`
  const svg = `<svg xmlns="http://www.w3.org/2000/svg"><title>quiet</title><script>document.title = "ran"</script></svg>`
  for (const [contentType, content] of [["text/html", script], ["image/svg+xml", svg]]) {
    const url = await create(server.url(fresh("stored")), contentType, content)
    const viewing = await browser.newPage()
    t.after(() => viewing.close())
    await viewing.goto(`${url}?offset=-1`)
    await sleep(100)
    assert.equal(await viewing.title(), "quiet")
  }
})

test("the chat of the examples: reloaded in the middle of an answer, and in a second tab", async (t) => {
  const data = path.join(folder, "..", `${path.basename(folder)}-chat`)
  const program = path.join(import.meta.dirname, "..", "..", "examples", "chat", "chat_app.py")
  const environment = { ...process.env, STREAMS: data, PORT: "0", PAUSE: "0.05" }
  const chat = spawn(PYTHON, [program], { env: environment, stdio: ["ignore", "ignore", "pipe"] })
  t.after(async () => {
    chat.kill("SIGKILL")
    await rm(data, { recursive: true, force: true, maxRetries: 5 })
  })
  let printed = ""
  chat.stderr.setEncoding("utf8").on("data", (text) => (printed += text))
  const [, base] = await until(() => /running on (http:\S+)/.exec(printed) ?? undefined, "the chat is served")

  const said = (page) => page.locator("#answer").textContent()
  const first = await page(t, base)
  await first.locator("form button").first().click()
  await until(async () => (await said(first)).length > 60, "the answer has begun")
  const url = first.url()
  await first.reload()
  const second = await browser.newPage()
  t.after(() => second.close())
  await second.goto(url)
  for (const tab of [first, second]) {
    await until(async () => (await tab.locator("#state").textContent()) === "completed", "the answer ends")
    assert.match(await said(tab), /^You asked: Does it survive a reload\? That is .* that a page has left\. $/)
  }
  assert.equal(await said(first), await said(second))
})
