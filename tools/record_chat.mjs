// The recording of examples/chat that the README shows: an answer, and the page reloaded in the middle of it.
//
//     make recording
//
// Frames are screenshots of headless Chromium over the example itself; they are put together as an animated PNG.

import { spawn } from "node:child_process"
import { mkdtemp, rm, writeFile } from "node:fs/promises"
import { createRequire } from "node:module"
import { tmpdir } from "node:os"
import path from "node:path"
import { deflateSync, inflateSync } from "node:zlib"

const ROOT = path.join(import.meta.dirname, "..")
const { chromium } = createRequire(path.join(ROOT, "tests", "interop", "package.json"))("playwright-core")
const TARGET = path.join(ROOT, "docs", "chat.png")
const MOST = 500_000 // bytes of the recording
const EVERY = 200 // milliseconds between two frames
const SIZE = { width: 600, height: 380 }

const frames = []

/** Take a frame, shown for some milliseconds, with a line that says what happens. */
async function frame(page, caption, shown = EVERY) {
  await page.evaluate((caption) => {
    const strip = document.getElementById("caption") ?? document.body.appendChild(document.createElement("div"))
    strip.id = "caption"
    strip.textContent = caption
    strip.style = "position:fixed;left:0;right:0;bottom:0;padding:.3rem 1rem;background:#246;color:#fff;font-size:15px"
  }, caption)
  frames.push({ png: await page.screenshot(), shown })
}

/** Take frames until a condition holds. */
async function film(page, caption, until) {
  while (!(await until(page))) {
    await frame(page, caption)
    await page.waitForTimeout(EVERY)
  }
}

const words = (page) => page.locator("#answer").textContent().then((text) => text.split(" ").length)
const isOver = async (page) => (await page.locator("#state").textContent()) === "completed"

async function record(browser, base) {
  const page = await browser.newPage()
  await page.setViewportSize(SIZE)
  await page.goto(base)
  await frame(page, "a question is asked", 900)
  await page.locator("form button").first().click()
  await film(page, "its answer is generated into a durable stream", async (page) => (await words(page)) > 16)
  await frame(page, "the page is reloaded in the middle of it", 900)
  await page.reload()
  await film(page, "every word is there again, and the answer goes on", async (page) => (await words(page)) > 34)
  const tab = await browser.newPage()
  await tab.setViewportSize(SIZE)
  await tab.goto(page.url())
  await film(tab, "a second tab shows the same", isOver)
  await frame(tab, "the answer was generated once", 2500)
}

// -- animated PNG: the chunks of each frame, with what says how long it is shown

const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte
  for (let bit = 0; bit < 8; bit += 1) crc = crc & 1 ? (crc >>> 1) ^ 0xedb88320 : crc >>> 1
  return crc
})

function chunk(type, ...parts) {
  const body = Buffer.concat([Buffer.from(type, "latin1"), ...parts])
  let crc = 0xffffffff
  for (const byte of body) crc = TABLE[(crc ^ byte) & 255] ^ (crc >>> 8)
  return Buffer.concat([numbers(body.length - 4), body, numbers((crc ^ 0xffffffff) >>> 0)])
}

function numbers(...values) {
  const buffer = Buffer.alloc(4 * values.length)
  values.forEach((value, index) => buffer.writeUInt32BE(value, 4 * index))
  return buffer
}

function* chunks(png) {
  for (let at = 8; at < png.length; ) {
    const size = png.readUInt32BE(at)
    yield { type: png.toString("latin1", at + 4, at + 8), data: png.subarray(at + 8, at + 8 + size) }
    at += 12 + size
  }
}

/** The rows of a picture of eight bits a channel, as they look: what filters changed for transport is changed back. */
function rows(png) {
  const parts = [...chunks(png)]
  const head = parts.find(({ type }) => type === "IHDR").data
  const packed = Buffer.concat(parts.filter(({ type }) => type === "IDAT").map(({ data }) => data))
  const [data, pixel] = [inflateSync(packed), head[9] === 6 ? 4 : 3]
  const width = head.readUInt32BE(0) * pixel
  const found = []
  let above = Buffer.alloc(width)
  for (let at = 0; at < data.length; at += width + 1) {
    const row = Buffer.from(data.subarray(at + 1, at + 1 + width))
    for (let x = 0; x < width; x += 1) {
      const [left, up, corner] = [x < pixel ? 0 : row[x - pixel], above[x], x < pixel ? 0 : above[x - pixel]]
      row[x] += [0, left, up, (left + up) >> 1, nearest(left, up, corner)][data[at]]
    }
    found.push(row)
    above = row
  }
  return { head, rows: found }
}

/** Paeth's choice: the neighbour that is nearest to what all three suggest. */
function nearest(left, up, corner) {
  const away = [left, up, corner].map((value) => Math.abs(left + up - corner - value))
  return [left, up, corner][away.indexOf(Math.min(...away))]
}

function animated(frames) {
  const { head } = rows(frames[0].png)
  const parts = [frames[0].png.subarray(0, 8), chunk("IHDR", head), chunk("acTL", numbers(frames.length, 0))]
  let [sequence, before] = [0, undefined]
  for (const { png, shown } of frames) {
    const delay = Buffer.alloc(6) // a numerator, a denominator, and how the frame is laid over the last one
    delay.writeUInt16BE(shown, 0)
    delay.writeUInt16BE(1000, 2)
    // Only the rows that have changed; none of them filtered, which is small for flat colours.
    const picture = rows(png).rows
    const differs = (row, index) => !before || !row.equals(before[index])
    const [first, last] = [picture.findIndex(differs), picture.findLastIndex(differs)]
    const changed = picture.slice(first, last + 1)
    const packed = deflateSync(Buffer.concat(changed.flatMap((row) => [Buffer.alloc(1), row])), { level: 9 })
    parts.push(chunk("fcTL", numbers(sequence++, head.readUInt32BE(0), changed.length, 0, first), delay))
    parts.push(before ? chunk("fdAT", numbers(sequence++), packed) : chunk("IDAT", packed))
    before = picture
  }
  return Buffer.concat([...parts, chunk("IEND")])
}

/** Two frames that look the same are one, shown for longer. */
function merged(frames) {
  const kept = []
  for (const { png, shown } of frames) {
    if (kept.at(-1)?.png.equals(png)) kept.at(-1).shown += shown
    else kept.push({ png, shown })
  }
  return kept
}

const folder = await mkdtemp(path.join(tmpdir(), "durable-streams-recording-"))
const environment = { ...process.env, STREAMS: path.join(folder, "data"), PORT: "0", PAUSE: "0.15" }
const program = path.join(ROOT, "examples", "chat", "chat_app.py")
const chat = spawn(process.argv[2], [program], { env: environment, stdio: ["ignore", "ignore", "pipe"] })
const flags = ["--no-sandbox", "--disable-gpu", "--disable-lcd-text"] // text in shades of grey: half the bytes
const browser = await chromium.launch({ executablePath: process.argv[3], args: flags })
try {
  const base = await new Promise((resolve, reject) => {
    let said = ""
    chat.stderr.setEncoding("utf8").on("data", (text) => {
      said += text
      const found = /running on (http:\S+)/.exec(said)
      if (found) resolve(found[1])
    })
    chat.once("exit", () => reject(new Error(`the chat did not start:\n${said}`)))
  })
  await record(browser, base)
  const recording = animated(merged(frames))
  if (recording.length > MOST) throw new Error(`the recording has ${recording.length} bytes, more than ${MOST}`)
  await writeFile(TARGET, recording)
  console.log(`${TARGET}: ${recording.length} bytes, ${frames.length} frames`)
} finally {
  await browser.close()
  chat.kill("SIGKILL")
  await rm(folder, { recursive: true, force: true, maxRetries: 5 })
}
