// Yjs documents over our server: the official provider and its official server (@durable-streams/y-durable-streams),
// which keeps each document in streams of ours and compacts it after 1 MiB of updates. That server computes offsets:
// it reads on from "the snapshot's offset plus one".

import assert from "node:assert/strict"
import { after, test } from "node:test"
import { YjsProvider } from "@durable-streams/y-durable-streams"
import { YjsServer } from "@durable-streams/y-durable-streams/server"
import { Awareness } from "y-protocols/awareness"
import * as Y from "yjs"
import { fresh, serve, sleep, until } from "./support.mjs"

const server = await serve("--long-poll-timeout", "2", "--sse-max-age", "2")

// What the official server prints of compactions, and of requests that a test's end or a killed server cut off.
console.log = console.error = () => {}

const service = new YjsServer({ dsServerUrl: server.origin })
const base = `${await service.start()}/v1/yjs/interop`
after(() => service.stop())

/** A document that follows `docId`, and the errors that its provider tells of. */
async function open(t, docId, options = {}) {
  const doc = new Y.Doc()
  const awareness = options.awareness ? new Awareness(doc) : undefined
  const provider = new YjsProvider({ ...options, doc, baseUrl: base, docId, awareness, connect: false })
  const errors = []
  provider.on("error", (error) => errors.push(error))
  t.after(() => {
    provider.destroy()
    awareness?.destroy()
    doc.destroy()
  })
  await provider.connect()
  await until(() => provider.synced, `${docId} is synchronised (${errors.map(String)})`)
  return { doc, text: doc.getText("text"), provider, awareness, errors }
}

const same = (...documents) =>
  until(() => documents.every(({ text }) => text.toString() === documents[0].text.toString()), "the documents converge")

for (const liveMode of ["sse", "long-poll"]) {
  test(`two documents converge, and see each other: ${liveMode}`, async (t) => {
    const id = fresh("pair")
    const one = await open(t, id, { liveMode, awareness: true })
    const two = await open(t, id, { liveMode, awareness: true })
    for (let n = 0; n < 40; n += 1) {
      one.text.insert(0, `1:${n} `)
      two.text.insert(two.text.length, `2:${n} `)
      if (n % 10 === 0) await sleep(20)
    }
    await until(() => one.text.length === two.text.length && one.text.length > 350, "everything has arrived")
    await same(one, two)
    one.awareness.setLocalStateField("name", "Ada")
    const seen = () => two.awareness.getStates().get(one.doc.clientID)?.name === "Ada"
    await until(seen, "one sees the other")
    assert.deepEqual([...one.errors, ...two.errors], [])
  })

  test(`a11: two documents converge across compaction, and a third that comes after it: ${liveMode}`, async (t) => {
    const id = fresh("compacted")
    const one = await open(t, id, { liveMode })
    const two = await open(t, id, { liveMode })
    const index = server.url(`yjs/interop/docs/${id}/.index`)
    for (let n = 0; n < 13; n += 1) {
      one.text.insert(one.text.length, `${n % 10}`.repeat(100_000))
      await one.provider.flush()
    }
    await until(async () => (await fetch(index)).ok, "the document is compacted")
    const three = await open(t, id, { liveMode })
    await same(one, two, three)
    assert.equal(three.text.length, 1_300_000)
    three.text.insert(0, "third ")
    two.text.insert(0, "second ")
    await until(() => one.text.length === 1_300_013, "what came after the compaction arrives")
    await same(one, two, three)
    const four = await open(t, id, { liveMode })
    await same(one, four)
    assert.deepEqual([one, two, three, four].flatMap(({ errors }) => errors), [])
  })
}

// By long-polling: where the stream under it breaks, the official Yjs server leaves its own event streams open forever.
test("two documents converge after the server was killed, and so does one that comes later", async (t) => {
  const [id, options] = [fresh("killed"), { liveMode: "long-poll" }]
  const one = await open(t, id, options)
  const two = await open(t, id, options)
  one.text.insert(0, "before ")
  await until(() => two.text.length > 0, "what came before the restart arrives")
  await server.restart()
  await until(() => one.provider.connected, "the provider is connected")
  one.text.insert(one.text.length, "after")
  await until(() => two.text.toString() === "before after", "what came after the restart arrives")
  const three = await open(t, id, options)
  await same(one, three)
})
