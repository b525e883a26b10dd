// Front ends of chats over `durable_streams.ai`: the AI SDK's chat with its default transport, which `useChat` is made
// of; its transport for durable streams; TanStack AI's chat; and EventSource. The back end is `runs_backend.py`.

import assert from "node:assert/strict"
import { spawn } from "node:child_process"
import { mkdtemp, rm } from "node:fs/promises"
import { tmpdir } from "node:os"
import path from "node:path"
import { after, describe, test } from "node:test"
import * as aisdk from "@durable-streams/aisdk-transport"
import { ChatClient, fetchServerSentEvents } from "@tanstack/ai-client"
import { AbstractChat, DefaultChatTransport, readUIMessageStream } from "ai"
import { EventSource } from "undici"
import { fresh, PYTHON, settled, sleep, until } from "./support.mjs"

const WORDS = [..."Every token arrives once, 流 included.\nAnd in order: ".split(" "), ..."0123456789"]
const ANSWER = WORDS.join(" ")

const folder = await mkdtemp(path.join(tmpdir(), "durable-streams-runs-"))
const backend = spawn(PYTHON, [path.join(import.meta.dirname, "runs_backend.py"), folder])
let printed = ""
for (const output of [backend.stdout, backend.stderr]) {
  output.setEncoding("utf8").on("data", (text) => (printed += text))
}
after(async () => {
  backend.kill("SIGKILL")
  await rm(folder, { recursive: true, force: true })
})
const [, base] = await until(() => /^serving (http:\S+)/m.exec(printed) ?? undefined, "the back end serves", 60_000)

const generated = async (chat) => (await (await fetch(`${base}/generated`)).json())[chat]

/** What useChat keeps in React's state. */
class State {
  status = "ready"
  error = undefined
  messages = []
  pushMessage = (message) => this.messages.push(message)
  popMessage = () => this.messages.pop()
  replaceMessage = (index, message) => (this.messages[index] = message)
  snapshot = structuredClone
}

/** The chat of a page: what `useChat({ id, resume: true })` makes, and begins with. */
class Chat extends AbstractChat {
  constructor(id, prepare = {}) {
    const state = new State()
    const transport = new DefaultChatTransport({ api: `${base}/api/chat`, ...prepare })
    super({ id, state, transport })
    this.page = state
  }

  get said() {
    const last = this.page.messages.findLast((message) => message.role === "assistant")
    return (last?.parts ?? []).filter((part) => part.type === "text").map((part) => part.text).join("")
  }
}

describe("useChat with its default transport", () => {
  test("an answer, and a page that is loaded again in the middle of it", async () => {
    const id = fresh("chat")
    const first = new Chat(id)
    const asking = first.sendMessage({ text: "Well?" })
    await until(() => first.said.length > 20, "the answer has begun")
    const [second, third] = [new Chat(id), new Chat(id)]
    await settled(Promise.all([second.resumeStream(), third.resumeStream(), asking]), "the answer ends")
    for (const chat of [first, second, third]) {
      assert.equal(chat.said, ANSWER)
      assert.equal(chat.status, "ready")
      assert.equal(chat.error, undefined)
    }
    assert.equal(await generated(id), WORDS.length)
  })

  test("a page that leaves stops nothing", async () => {
    const id = fresh("chat")
    const first = new Chat(id)
    const asking = first.sendMessage({ text: "Well?" })
    await until(() => first.said.length > 5, "the answer has begun")
    await first.stop() // of the page's own request only
    await asking
    const second = new Chat(id)
    await settled(second.resumeStream(), "the answer ends")
    assert.equal(second.said, ANSWER)
    assert.equal(await generated(id), WORDS.length)
  })

  test("nothing to resume", async () => {
    const chat = new Chat(fresh("chat"))
    await settled(chat.resumeStream(), "it answers 204")
    assert.deepEqual(chat.page.messages, [])
    assert.equal(chat.status, "ready")
  })

  test("stop ends the answer for every page", async () => {
    const id = fresh("chat")
    const [first, second] = [new Chat(id), new Chat(id)]
    const asking = first.sendMessage({ text: "Well?" })
    await until(() => first.said.length > 20, "the answer has begun")
    const resuming = second.resumeStream()
    await until(() => second.said.length > 20, "the second page follows")
    assert.equal(await (await fetch(`${base}/api/chat/${id}/stop`, { method: "POST" })).json(), true)
    await settled(Promise.all([asking, resuming]), "both pages end")
    assert.equal(second.said, first.said)
    assert.ok(ANSWER.startsWith(first.said) && first.said.length < ANSWER.length)
    assert.equal(first.error, undefined)
    assert.ok((await generated(id)) < WORDS.length)
  })

  test("a second answer at the same time is refused", async () => {
    const id = fresh("chat")
    const [first, second] = [new Chat(id), new Chat(id)]
    const asking = first.sendMessage({ text: "Well?" })
    await until(() => first.said.length > 5, "the answer has begun")
    await settled(second.sendMessage({ text: "Again?" }), "it is refused")
    assert.equal(second.status, "error")
    assert.match(second.error.message, /An answer is being generated/)
    await settled(asking, "the answer ends")
    assert.equal(first.said, ANSWER)
  })

  test("the answer's head", async () => {
    const answer = await fetch(`${base}/api/chat`, { method: "POST", body: JSON.stringify({ id: fresh("chat") }) })
    assert.equal(answer.headers.get("x-vercel-ai-ui-message-stream"), "v1")
    assert.equal(answer.headers.get("content-type"), "text/event-stream")
    assert.ok((await answer.text()).endsWith("data: [DONE]\n\n"))
  })
})

test("the AI SDK's transport for durable streams", async () => {
  const transport = aisdk.createDurableChatTransport({ api: `${base}/durable` })
  const chatId = fresh("durable/chat")
  const messages = [{ id: "u", role: "user", parts: [{ type: "text", text: "Well?" }] }]
  const asked = { trigger: "submit-message", chatId, messageId: undefined, messages }

  async function text(chunks) {
    let last
    for await (const message of readUIMessageStream({ stream: chunks })) last = message
    return last.parts.filter((part) => part.type === "text").map((part) => part.text).join("")
  }

  assert.equal(await settled(text(await transport.sendMessages(asked)), "the answer arrives"), ANSWER)
})

test("EventSource, which comes back by itself", async () => {
  const id = fresh("events")
  const url = `${base}/events/${id}`
  assert.equal((await fetch(url, { method: "POST" })).status, 202)

  /** Read as a page does, until the end or for some events; return the words and the end. */
  function read(limit = Infinity) {
    return new Promise((resolve) => {
      const source = new EventSource(url)
      const words = []
      source.onmessage = ({ data }) => {
        if (words.length < limit) words.push(JSON.parse(data)) // events of the same chunk come behind a close, too
        if (words.length >= limit) leave()
      }
      source.addEventListener("end", ({ data }) => leave(JSON.parse(data)))
      const leave = (end) => {
        source.close()
        resolve({ words, end })
      }
    })
  }

  const [left, one, other] = await settled(Promise.all([read(3), read(), sleep(100).then(() => read())]), "it ends")
  assert.deepEqual(left.words, one.words.slice(0, 3))
  for (const { words, end } of [one, other, await read()]) {
    assert.equal(words.join(""), ANSWER)
    assert.deepEqual(end, { state: "completed" })
  }
  assert.equal(await generated(id), WORDS.length)
})

describe("TanStack AI's chat", () => {
  const textOf = (messages) =>
    messages.filter(({ role }) => role === "assistant").flatMap(({ parts }) => parts).map(({ content }) => content ?? "").join("")

  /** `fetch`, whose answers break after some events, as often as asked. */
  function breaking(times) {
    const seen = { requests: [] }
    seen.fetch = async (url, init) => {
      seen.requests.push(init)
      const answer = await fetch(url, init)
      if (times-- <= 0) return answer
      let left = 3 // the answer goes on for much longer
      const cut = new TransformStream({
        transform(chunk, controller) {
          controller.enqueue(chunk)
          if ((left -= 1) === 0) controller.error(new TypeError("network error"))
        },
      })
      return new Response(answer.body.pipeThrough(cut), { status: answer.status, headers: answer.headers })
    }
    return seen
  }

  for (const times of [0, 2]) {
    test(`an answer, whose connection breaks ${times} times`, async () => {
      const threadId = fresh("tanstack")
      const network = breaking(times)
      const connection = fetchServerSentEvents(`${base}/tanstack`, {
        fetchClient: network.fetch,
        reconnect: { delayMs: 20 },
      })
      const [messages, errors] = [[], []]
      const client = new ChatClient({
        threadId,
        connection,
        onMessagesChange: (all) => messages.splice(0, Infinity, ...all),
        onError: (error) => errors.push(error),
      })
      await settled(client.sendMessage("Well?"), "the answer arrives")
      assert.deepEqual(errors, [])
      assert.equal(textOf(messages), ANSWER)
      assert.equal(network.requests.length, times + 1)
      assert.equal(await generated(threadId), WORDS.length)

      // Another page has all of it again.
      const again = fetchServerSentEvents(`${base}/tanstack?threadId=${threadId}`)
      let text = ""
      for await (const chunk of again.joinRun("any", AbortSignal.timeout(30_000))) {
        if (chunk.type === "TEXT_MESSAGE_CONTENT") text += chunk.delta
      }
      assert.equal(text, ANSWER)
    })
  }
})
