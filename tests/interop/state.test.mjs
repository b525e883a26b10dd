// @durable-streams/state over @tanstack/db: rows that follow a stream, which our side writes, reads and compacts.

import assert from "node:assert/strict"
import { execFile } from "node:child_process"
import { readFile, writeFile } from "node:fs/promises"
import path from "node:path"
import { describe, test } from "node:test"
import { promisify } from "node:util"
import { DurableStream, stream as read } from "@durable-streams/client"
import { createStateSchema, MaterializedState } from "@durable-streams/state"
import { createLiveQueryCollection, createStreamDB, eq } from "@durable-streams/state/db"
import { Ajv } from "ajv"
import addFormats from "ajv-formats"
import { fresh, PYTHON, serve, settled, until } from "./support.mjs"

const server = await serve("--long-poll-timeout", "2", "--sse-max-age", "2")

/** A schema as a validation library would make it. */
const rows = (type) => ({
  type,
  primaryKey: "id",
  schema: { "~standard": { version: 1, vendor: "test", validate: (value) => ({ value }) } },
})
const schema = createStateSchema({ users: rows("user"), messages: rows("message") })

async function create(name) {
  const url = server.url(fresh(name))
  return DurableStream.create({ url, contentType: "application/json" })
}

const write = (handle, ...events) => Promise.all(events.map((event) => handle.append(JSON.stringify(event))))

const ours = ([name]) => name !== "_seq" && !name.startsWith("$")

/** The rows of a collection without what StreamDB and TanStack DB add to them. */
const shown = (collection) =>
  [...collection.values()]
    .map((row) => Object.fromEntries(Object.entries(row).filter(ours)))
    .sort((one, other) => (one.id < other.id ? -1 : 1))

for (const live of ["sse", "long-poll", true]) {
  describe(`a StreamDB, live: ${live}`, () => {
    test("rows that are there, and rows that come, go and change", async (t) => {
      const handle = await create("rows")
      await write(
        handle,
        schema.users.insert({ value: { id: "1", name: "Ada" } }),
        schema.users.insert({ value: { id: "2", name: "Bob" } }),
        schema.messages.insert({ value: { id: "m", text: "流\\r\\n" } }),
      )
      const db = createStreamDB({ streamOptions: { url: handle.url }, state: schema, live })
      t.after(() => db.close())
      await settled(db.preload(), "the rows are loaded")
      assert.deepEqual(shown(db.collections.users), [{ id: "1", name: "Ada" }, { id: "2", name: "Bob" }])
      assert.deepEqual(shown(db.collections.messages), [{ id: "m", text: "流\\r\\n" }])

      await write(
        handle,
        schema.users.update({ value: { id: "1", name: "Ada L." } }),
        schema.users.delete({ key: "2" }),
        schema.users.upsert({ value: { id: "3", name: "Cy" } }),
        schema.users.upsert({ value: { id: "3", name: "Cyd" }, headers: { txid: "t1" } }),
      )
      await settled(db.utils.awaitTxId("t1", 15_000), "the transaction arrives")
      assert.deepEqual(shown(db.collections.users), [{ id: "1", name: "Ada L." }, { id: "3", name: "Cyd" }])
    })

    test("an action that is shown before it is stored", async (t) => {
      const handle = await create("actions")
      const db = createStreamDB({
        streamOptions: { url: handle.url, contentType: "application/json" },
        state: schema,
        live,
        actions: ({ db, stream }) => ({
          addUser: {
            onMutate: (user) => db.collections.users.insert(user),
            mutationFn: async (user) => {
              const txid = crypto.randomUUID()
              await write(stream, schema.users.insert({ value: user, headers: { txid } }))
              await db.utils.awaitTxId(txid, 15_000)
            },
          },
        }),
      })
      t.after(() => db.close())
      await settled(db.preload(), "the empty stream is loaded")
      const added = db.actions.addUser({ id: "1", name: "Ada" })
      assert.equal(db.collections.users.get("1").name, "Ada")
      await settled(added.isPersisted.promise, "the action is stored")
      assert.deepEqual(shown(db.collections.users), [{ id: "1", name: "Ada" }])
      assert.equal((await (await read({ url: handle.url, live: false })).json()).length, 1)
    })
  })
}

test("a live query over many rows, through a killed server", async (t) => {
  const handle = await create("query")
  const db = createStreamDB({ streamOptions: { url: handle.url }, state: schema, live: "long-poll" })
  t.after(() => db.close())
  const names = (from, to) => Array.from({ length: to - from }, (_, n) => ({ id: String(from + n), name: `n${n % 3}` }))
  await write(handle, ...names(0, 900).map((value) => schema.users.insert({ value })))
  await settled(db.preload(), "the rows are loaded")
  const query = createLiveQueryCollection({
    startSync: true,
    query: (q) => q.from({ user: db.collections.users }).where(({ user }) => eq(user.name, "n1")),
  })
  await until(() => query.size === 300, "the query has its rows")
  await server.restart()
  await write(handle, ...names(900, 1200).map((value) => schema.users.insert({ value })))
  await until(() => query.size === 400 && db.collections.users.size === 1200, "the query has the new rows")
})

test("our command line writes what it reads, and reads what it writes", async (t) => {
  const handle = await create("shell")
  const shell = (...args) => promisify(execFile)(PYTHON, ["-m", "durable_streams.cli", ...args])
  const file = path.join(server.folder, "events.ndjson")
  const events = [
    schema.users.insert({ value: { id: "1", name: "Ada" } }),
    schema.users.upsert({ value: { id: "2", name: "Bob" } }),
    schema.users.delete({ key: "1" }),
  ]
  await writeFile(file, events.map((event) => JSON.stringify(event) + "\n").join(""))
  await shell("append", handle.url, "--ndjson", "--file", file)
  const db = createStreamDB({ streamOptions: { url: handle.url }, state: schema })
  t.after(() => db.close())
  await settled(db.preload(), "the rows are loaded")
  assert.deepEqual(shown(db.collections.users), [{ id: "2", name: "Bob" }])

  await write(handle, schema.users.insert({ value: { id: "3", name: "Cy" } }))
  const { stdout } = await shell("read", handle.url, "--ndjson")
  const state = new MaterializedState()
  for (const line of stdout.trim().split("\n")) state.apply(JSON.parse(line))
  assert.deepEqual([...state.getType("user").values()], [{ id: "2", name: "Bob" }, { id: "3", name: "Cy" }])
})

// -- durable_streams.state on the other side

const peer = async (...args) => {
  const script = path.join(import.meta.dirname, "state_peer.py")
  return (await promisify(execFile)(PYTHON, [script, ...args])).stdout
}
const members = (rows) => [...rows].sort((one, other) => (one.id < other.id ? -1 : 1))

test("what Python writes: each message is of the protocol's schema, rows and transactions arrive", async (t) => {
  const handle = await create("from-python")
  const db = createStreamDB({ streamOptions: { url: handle.url }, state: schema })
  t.after(() => db.close())
  await settled(db.preload(), "the empty stream is loaded")
  await peer("write", handle.url, "tx-1")
  await settled(db.utils.awaitTxId("tx-1", 30_000), "the transaction arrives")
  assert.deepEqual(shown(db.collections.users), [{ id: "1", name: "Ada L." }, { id: "3", name: "Cy" }])
  assert.deepEqual(shown(db.collections.messages), [{ id: "m", text: "流\r\n" }])

  const packages = path.join(import.meta.dirname, "node_modules")
  const definition = path.join(packages, "@durable-streams/state/state-protocol.schema.json")
  const valid = addFormats(new Ajv({ strict: false })).compile(JSON.parse(await readFile(definition, "utf8")))
  const written = await (await read({ url: handle.url, live: false })).json()
  assert.equal(written.length, 7)
  for (const message of written) {
    // The TypeScript writes upserts too; the schema does not know them.
    const known = message.headers.operation === "upsert" ? { ...message, headers: { operation: "insert" } } : message
    assert.ok(valid(known), `${JSON.stringify(message)}: ${JSON.stringify(valid.errors)}`)
  }
})

test("what TypeScript writes: Python has the same rows", async () => {
  const handle = await create("to-python")
  const events = [
    schema.users.insert({ value: { id: "0", name: "forgotten" } }),
    { headers: { control: "reset", offset: "-1" } },
    schema.users.insert({ value: { id: "1", name: "Ada" }, headers: { timestamp: new Date().toISOString() } }),
    schema.users.upsert({ value: { id: "2", name: "Bob" }, headers: { from: "somebody" } }),
    schema.users.update({ value: { id: "1", name: "Ada L." }, oldValue: { id: "1", name: "Ada" } }),
    { headers: { control: "snapshot-start" } },
    schema.users.upsert({ value: { id: "1", name: "Ada L." } }),
    schema.users.upsert({ value: { id: "2", name: "Bob" } }),
    { headers: { control: "snapshot-end" } },
    schema.users.delete({ key: "2" }),
    schema.messages.insert({ value: { id: "m", text: "流\r\n" }, headers: { txid: "tx-2" } }),
  ]
  const state = new MaterializedState()
  for (const event of events) {
    await write(handle, event)
    if (event.headers.control === "reset") state.clear()
    else if (!event.headers.control) state.apply(event)
  }
  const found = JSON.parse(await peer("read", handle.url, "tx-2"))
  assert.equal(found.invalid, 0)
  assert.deepEqual(members(found.rows.users), members(state.getType("user").values()))
  assert.deepEqual(members(found.rows.messages), members(state.getType("message").values()))
})

test("a stream that Python has compacted: old and new readers have the same rows", async (t) => {
  const handle = await create("compacted")
  const open = () => {
    const db = createStreamDB({ streamOptions: { url: handle.url }, state: schema })
    t.after(() => db.close())
    return db
  }
  const numbers = Array.from({ length: 300 }, (_, number) => number)
  for (const number of numbers) {
    const value = { id: String(number % 20), name: `n${number}` }
    await handle.append(JSON.stringify(schema.users.upsert({ value })))
  }
  await write(handle, schema.users.delete({ key: "7" }))
  const old = open()
  await settled(old.preload(), "the rows are loaded")
  const before = shown(old.collections.users)
  assert.equal(before.length, 19)

  const done = JSON.parse(await peer("compact", handle.url))
  assert.equal(done.rows, 19)
  assert.equal((await (await read({ url: handle.url, live: false })).json()).length, 21)
  const young = open()
  await settled(young.preload(), "the rows of the snapshot are loaded")
  assert.deepEqual(shown(young.collections.users), before)
  await write(handle, schema.users.insert({ value: { id: "99", name: "late" }, headers: { txid: "tx-3" } }))
  for (const db of [old, young]) {
    await settled(db.utils.awaitTxId("tx-3", 30_000), "the transaction arrives")
    assert.equal(db.collections.users.size, 20)
  }
})
