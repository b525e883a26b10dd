// Two chat transports over our server: the AI SDK's (@durable-streams/aisdk-transport) and TanStack AI's
// (@durable-streams/tanstack-ai-transport), each with its client half and its server half.

import assert from "node:assert/strict"
import { describe, test } from "node:test"
import * as aisdk from "@durable-streams/aisdk-transport"
import { stream } from "@durable-streams/client"
import * as tanstack from "@durable-streams/tanstack-ai-transport"
import { readUIMessageStream, simulateReadableStream, streamText } from "ai"
import { MockLanguageModelV3 } from "ai/test"
import { fresh, listenToFetch, serve, settled, sleep, until } from "./support.mjs"

const server = await serve("--long-poll-timeout", "2", "--sse-max-age", "2")
const WORDS = "Every token arrives once, 流 included.\nAnd in order: ".split(/(?<= )/).concat([..."0123456789"])
const ANSWER = WORDS.join("")

/** A language model that says `WORDS`, one after the other. */
const usage = { inputTokens: { total: 1 }, outputTokens: { total: WORDS.length } }
const model = new MockLanguageModelV3({
  doStream: async () => ({
    stream: simulateReadableStream({
      chunkDelayInMs: 5,
      chunks: [
        { type: "stream-start", warnings: [] },
        { type: "text-start", id: "0" },
        ...WORDS.map((delta) => ({ type: "text-delta", id: "0", delta })),
        { type: "text-end", id: "0" },
        { type: "finish", finishReason: { unified: "stop", raw: undefined }, usage },
      ],
    }),
  }),
})

describe("the AI SDK", () => {
  const asked = [{ id: "u", role: "user", parts: [{ type: "text", text: "Well?" }] }]
  const chats = new Map() // a chat's name to the stream that its answer is written to

  const answer = (chat, mode) => {
    chats.set(chat, server.url(fresh("aisdk")))
    return aisdk.toDurableStreamResponse({
      mode,
      source: streamText({ model, prompt: "Well?" }).toUIMessageStream(),
      stream: { writeUrl: chats.get(chat) },
    })
  }

  const api = async (request) => {
    if (request.method === "POST") {
      const { id, mode } = await request.json()
      return answer(id, mode)
    }
    const url = chats.get(new URL(request.url).pathname.split("/").at(-2))
    return url ? Response.json({ streamUrl: url }, { headers: { Location: url } }) : new Response(null, { status: 204 })
  }

  async function transport() {
    return aisdk.createDurableChatTransport({ api: `${await listenToFetch(api)}/api/chat` })
  }

  const send = (chat, chatId, body = {}) =>
    chat.sendMessages({ trigger: "submit-message", chatId, messageId: undefined, messages: asked, body })

  async function text(chunks) {
    let last
    for await (const message of readUIMessageStream({ stream: chunks })) last = message
    return last.parts.filter((part) => part.type === "text").map((part) => part.text).join("")
  }

  for (const mode of ["immediate", "await"]) {
    test(`an answer, mode: ${mode}`, async () => {
      const chunks = await send(await transport(), fresh("chat"), { mode })
      assert.equal(await settled(text(chunks), "the answer arrives"), ANSWER)
    })
  }

  test("an answer that is read again while it is written, and when it is complete", async () => {
    const [chat, chatId] = [await transport(), fresh("chat")]
    assert.equal(await chat.reconnectToStream({ chatId }), null)
    const first = text(await send(chat, chatId))
    const second = text(await chat.reconnectToStream({ chatId }))
    assert.equal(await settled(first, "the answer arrives"), ANSWER)
    assert.equal(await settled(second, "the same answer arrives at the other reader"), ANSWER)
    assert.equal(await settled(text(await chat.reconnectToStream({ chatId })), "it is still there"), ANSWER)
  })
})

describe("TanStack AI", () => {
  const message = (id, content) => ({ id, role: "user", parts: [{ type: "text", content }] })

  async function* answer(messageId) {
    yield { type: "TEXT_MESSAGE_START", messageId, role: "assistant" }
    let content = ""
    for (const delta of WORDS) {
      content += delta
      yield { type: "TEXT_MESSAGE_CONTENT", messageId, delta, content }
      await sleep(2)
    }
    yield { type: "TEXT_MESSAGE_END", messageId }
  }

  /** A chat session: its stream, and a connection to it as a page would have it. */
  async function session() {
    const readUrl = server.url(fresh("tanstack"))
    await tanstack.ensureDurableChatSessionStream({ writeUrl: readUrl })
    let answers = 0
    const api = async (request) => {
      const { messages } = await request.json()
      return tanstack.toDurableChatSessionResponse({
        stream: { writeUrl: readUrl },
        newMessages: [messages.at(-1)],
        responseStream: answer(`a${(answers += 1)}`),
      })
    }
    const sendUrl = `${await listenToFetch(api)}/api/chat`
    return { readUrl, connect: (more = {}) => tanstack.durableStreamConnection({ sendUrl, readUrl, ...more }) }
  }

  async function collect(connection, chunks, signal) {
    for await (const chunk of connection.subscribe(signal)) chunks.push(chunk)
  }

  const said = (chunks, messageId) =>
    chunks
      .filter((chunk) => chunk.type === "TEXT_MESSAGE_CONTENT" && chunk.messageId === messageId)
      .map((chunk) => chunk.delta)
      .join("")
  const ended = (chunks, messageId) =>
    chunks.some((chunk) => chunk.type === "TEXT_MESSAGE_END" && chunk.messageId === messageId)

  test("two pages see one conversation, past the end of a connection", async () => {
    const { readUrl, connect } = await session()
    const [one, other, abort] = [[], [], new AbortController()]
    const connection = connect()
    const reading = [collect(connection, one, abort.signal), collect(connect(), other, abort.signal)]
    await until(() => one.length > 0 && other.length > 0, "both pages have the empty conversation")
    await connection.send([message("u1", "Well?")])
    await until(() => ended(one, "a1") && ended(other, "a1"), "both pages have the answer")
    await sleep(2500)
    await connection.send([message("u1", "Well?"), message("u2", "Again?")])
    await until(() => ended(one, "a2") && ended(other, "a2"), "both pages have the second answer")
    abort.abort()
    await settled(Promise.allSettled(reading), "the pages end")
    for (const page of [one, other]) {
      assert.deepEqual(page[0], { type: "MESSAGES_SNAPSHOT", messages: [] })
      assert.equal(said(page, "u1") + said(page, "u2"), "Well?Again?")
      assert.equal(said(page, "a1"), ANSWER)
      assert.equal(said(page, "a2"), ANSWER)
    }
    const stored = await (await stream({ url: readUrl, live: false })).json()
    assert.equal(stored.length, one.length - 1)
  })

  test("a snapshot, and what follows it", async () => {
    const { readUrl, connect } = await session()
    await connect().send([message("u1", "Well?")])
    await until(async () => ended(await (await stream({ url: readUrl, live: false })).json(), "a1"), "it is stored")
    const { messages, offset } = await tanstack.materializeSnapshotFromDurableStream({ readUrl })
    const texts = messages.map(({ id, role, parts }) => [id, role, parts[0].content])
    assert.deepEqual(texts, [["u1", "user", "Well?"], ["a1", "assistant", ANSWER]])

    const [page, abort] = [[], new AbortController()]
    const connection = connect({ initialOffset: offset })
    const reading = collect(connection, page, abort.signal)
    await connection.send([message("u2", "Again?")])
    await until(() => ended(page, "a2"), "the second answer arrives")
    abort.abort()
    await settled(reading, "the page ends")
    assert.equal(said(page, "u1") + said(page, "u2"), "Again?")
    assert.equal(said(page, "a2"), ANSWER)
  })
})
