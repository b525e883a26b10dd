// The inspector in headless Chromium: every view, what streams contain is shown and never executed, a server that is
// killed under an open page, and keys.

import assert from "node:assert/strict"
import { execFile } from "node:child_process"
import { mkdtemp, rm } from "node:fs/promises"
import { tmpdir } from "node:os"
import path from "node:path"
import { after, describe, test } from "node:test"
import { promisify } from "node:util"
import { chromium } from "playwright-core"
import { fresh, PYTHON, serve, sleep, until } from "./support.mjs"

const JSON_TYPE = "application/json"
const HOSTILE = `<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>`

const browser = await chromium.launch({ executablePath: process.env.INTEROP_CHROMIUM, args: ["--no-sandbox", "--disable-gpu"] })
const folder = await mkdtemp(path.join(tmpdir(), "durable-streams-inspector-"))
after(async () => {
  await browser.close()
  await rm(folder, { recursive: true, force: true })
})
const server = await serve("--long-poll-timeout", "2")

async function open(t, hash = "", at = server) {
  const page = await browser.newPage({ viewport: { width: 1100, height: 900 } })
  page.setDefaultTimeout(60_000)
  page.failures = []
  page.on("pageerror", (error) => page.failures.push(String(error)))
  page.on("dialog", (dialog) => page.failures.push(`a dialog: ${dialog.message()}`))
  t.after(async () => {
    assert.deepEqual(page.failures, [])
    await page.close()
  })
  await page.goto(`${at.origin}/${hash}`)
  return page
}

const linkTo = (stream) => `#/stream/${stream.split("/").map(encodeURIComponent).join("/")}`

async function create(stream, contentType = JSON_TYPE, body = undefined) {
  const url = server.url(stream.split("/").map(encodeURIComponent).join("/"))
  const made = await fetch(url, { method: "PUT", headers: { "content-type": contentType }, body })
  assert.equal(made.status, 201)
  return url
}

async function append(url, body, contentType = JSON_TYPE) {
  const answer = await fetch(url, { method: "POST", headers: { "content-type": contentType }, body })
  assert.ok(answer.ok, `${answer.status} ${await answer.text()}`)
}

const shown = (page) => page.$$eval(".records .line", (all) => all.map((one) => one.textContent))
const button = (page, name) => page.getByRole("button", { name, exact: true })

describe("the list", () => {
  test("finds streams by the beginning of their paths, and leads to them", async (t) => {
    const name = fresh("jobs")
    await create(`${name}/a`)
    await create(`${name}/b`)
    const page = await open(t)
    await page.getByLabel("Path begins with").fill(`${name}/`)
    await until(async () => (await page.locator("tbody tr").count()) === 2, "both streams are listed")
    await page.getByRole("link", { name: `${name}/b` }).click()
    await page.getByRole("heading", { name: `${name}/b` }).waitFor()
    await page.getByText("Nothing is here yet.").waitFor()
  })

  test("shows more streams page by page", async (t) => {
    const name = fresh("many")
    await Promise.all(Array.from({ length: 450 }, (_, number) => create(`${name}/${number}`)))
    const page = await open(t)
    await page.getByLabel("Path begins with").fill(`${name}/`)
    await until(async () => (await page.locator("tbody tr").count()) === 200, "a page is shown")
    await button(page, "Show more").click()
    await until(async () => (await page.locator("tbody tr").count()) === 400, "two pages are shown")
  })

  test("makes a stream", async (t) => {
    const name = fresh("made")
    const page = await open(t)
    await button(page, "New").click()
    await page.getByLabel("Path", { exact: true }).fill(name)
    await button(page, "Create").click()
    await page.getByRole("heading", { name }).waitFor()
    assert.equal((await fetch(server.url(name), { method: "HEAD" })).headers.get("content-type"), JSON_TYPE)
  })
})

describe("a stream", () => {
  test("is read from end to end, though one append holds all of it", async (t) => {
    const name = fresh("long")
    const url = await create(name)
    const records = Array.from({ length: 20_000 }, (_, number) => ({ number, text: "x".repeat(40) }))
    await append(url, JSON.stringify(records))
    const page = await open(t, linkTo(name))
    const seen = []
    for (let turn = 0; turn < 5; turn += 1) {
      await until(async () => JSON.parse((await shown(page))[0] ?? "{}").number === seen.length, "the next records are shown")
      seen.push(...(await shown(page)).map((line) => JSON.parse(line).number))
      await button(page, "Later").click()
    }
    assert.deepEqual(seen, Array.from({ length: 2500 }, (_, number) => number))
    await button(page, "Tail").click()
    await until(async () => (await shown(page)).some((line) => line.includes('"number":19999,')), "the last record is shown")
    await page.getByLabel("Offset").fill("0")
    await button(page, "Go").click()
    await until(async () => (await shown(page))[0]?.includes('"number":0,'), "the first record is shown")
  })

  test("keeps each digit and each character of a message", async (t) => {
    const name = fresh("exact")
    const message = '{"big":12345678901234567890.10,"text":"\\u00e9\\n","nested":[[],{}]}'
    await append(await create(name), message)
    const page = await open(t, linkTo(name))
    await until(async () => (await shown(page)).includes(message), "the message is shown as it is")
    await page.locator(".records .fold").first().click()
    await page.locator(".tree .number", { hasText: "12345678901234567890.10" }).waitFor()
  })

  test("of bytes is shown in hex, and one of 50 MB in part", async (t) => {
    const name = fresh("bytes")
    await create(name, "application/octet-stream", Buffer.alloc(50 << 20, "\u0001\u0002\u0003"))
    const page = await open(t, linkTo(name))
    await page.getByText("01 02 03 01").first().waitFor()
    await page.getByText("Not all of it is shown.").waitFor()
  })

  test("is followed, appended to, forked, trimmed, closed and deleted", async (t) => {
    const name = fresh("whole")
    const url = await create(name)
    await append(url, "[1,2,3]")
    const page = await open(t, linkTo(name))
    await button(page, "Live").click()
    await page.getByLabel("Append a JSON message").fill('{"from":"the page"}')
    await button(page, "Append").click()
    await until(async () => (await shown(page)).includes('{"from":"the page"}'), "the live tail shows it")
    await append(url, '{"from":"elsewhere"}')
    await until(async () => (await shown(page)).includes('{"from":"elsewhere"}'), "the live tail shows the other one")
    await button(page, "Pause").click()
    assert.equal(await (await fetch(url)).text(), '[1,2,3,{"from":"the page"},{"from":"elsewhere"}]')

    await page.getByText("Fork, trim, close, delete").click()
    await page.getByLabel("Trim what is before").fill("6")
    await button(page, "Trim").click()
    await page.getByRole("alertdialog").getByRole("button", { name: "Trim" }).click()
    await until(async () => (await (await fetch(url)).text()).startsWith('[{"from":"the page"}'), "it is trimmed")
    await button(page, "Close").click()
    await page.getByRole("alertdialog").getByRole("button", { name: "Close" }).click()
    await page.getByText("closed", { exact: true }).waitFor()
    await page.getByLabel("Fork to").fill(`${name}-fork`)
    await button(page, "Fork").click()
    await page.getByRole("heading", { name: `${name}-fork` }).waitFor()
    await page.getByRole("img", { name: "What was forked from what" }).getByRole("link", { name, exact: true }).waitFor()
    await page.getByText("Fork, trim, close, delete").click()
    await button(page, "Delete").click()
    await page.getByRole("alertdialog").getByRole("button", { name: "Keep it" }).click()
    assert.equal((await fetch(server.url(`${name}-fork`), { method: "HEAD" })).status, 200)
    await button(page, "Delete").click()
    await page.getByRole("alertdialog").getByRole("button", { name: "Delete" }).click()
    await until(async () => (await fetch(server.url(`${name}-fork`), { method: "HEAD" })).status === 404, "it is deleted")
  })

  test("that contains scripts is shown, and nothing of it runs", async (t) => {
    const name = `${fresh("hostile")}/${HOSTILE}`
    const url = await create(name)
    await append(url, JSON.stringify({ [HOSTILE]: HOSTILE, "javascript:alert(1)": "javascript:alert(1)" }))
    const text = fresh("hostile-text")
    await create(text, `text/html; x="${HOSTILE.replaceAll('"', "'")}"`, HOSTILE)
    const page = await open(t)
    await page.getByRole("link", { name }).click()
    await page.locator(".records .fold").first().click()
    await page.locator(".tree .string", { hasText: "<script>" }).waitFor()
    await page.goto(`${server.origin}/${linkTo(text)}`)
    await page.locator(".records pre", { hasText: "<script>" }).waitFor()
    assert.equal(await page.evaluate(() => window.hacked), undefined)
  })

  test("is followed over the server's death, without a loss", async (t) => {
    const name = fresh("followed")
    const url = await create(name)
    const page = await open(t, linkTo(name))
    await button(page, "Live").click()
    for (let number = 0; number < 50; number += 1) await append(url, String(number))
    await server.restart()
    for (let number = 50; number < 100; number += 1) await append(url, String(number))
    const all = Array.from({ length: 100 }, (_, number) => String(number))
    await until(async () => (await shown(page)).length === 100, "all records are shown")
    assert.deepEqual(await shown(page), all)
    await until(async () => (await page.getByRole("alert").count()) === 0, "the failure is no longer shown")
  })

  test("that grows fast leaves the page usable, and bounded", async (t) => {
    const name = fresh("fast")
    const url = await create(name)
    const page = await open(t, linkTo(name))
    await button(page, "Live").click()
    let going = true
    const writer = (async () => {
      for (let batch = 0; going; batch += 1) {
        await append(url, JSON.stringify(Array.from({ length: 250 }, (_, number) => ({ number: batch * 250 + number }))))
        await sleep(50)
      }
    })()
    await page.getByLabel("Append a JSON message").pressSequentially('{"typed":"while it runs"}')
    assert.equal(await page.getByLabel("Append a JSON message").inputValue(), '{"typed":"while it runs"}')
    await page.getByText(/records\/s/).waitFor()
    assert.ok((await page.locator(".records li").count()) <= 500)
    await button(page, "Pause").click()
    going = false
    await writer
  })
})

describe("the other views", () => {
  test("show the server's figures, and go on after a restart", async (t) => {
    const page = await open(t, "#/server")
    await page.getByText("Appends since the start").waitFor()
    await server.restart()
    await create(fresh("figures"), JSON_TYPE, "[1]")
    await until(async () => (await page.locator("dd").allTextContents()).some((text) => /in 1 commit/.test(text)), "it counts again")
  })

  test("show the subscriptions", async (t) => {
    const wakes = fresh("wakes")
    await create(wakes)
    const id = fresh("workers")
    const made = await fetch(server.url(`__ds/subscriptions/${id}`), {
      method: "PUT",
      headers: { "content-type": JSON_TYPE },
      body: JSON.stringify({ type: "pull-wake", pattern: "jobs/**", wake_stream: wakes }),
    })
    assert.ok(made.ok, await made.text())
    const page = await open(t, "#/subscriptions")
    await page.getByRole("cell", { name: id }).waitFor()
  })

  test("fit on a phone, in the dark", async (t) => {
    const name = fresh("phone")
    await append(await create(name), JSON.stringify({ text: "x".repeat(300) }))
    const page = await open(t, linkTo(name))
    await page.emulateMedia({ colorScheme: "dark" })
    await page.setViewportSize({ width: 360, height: 700 })
    await page.locator(".records li").first().waitFor()
    const wide = await page.evaluate(() => document.documentElement.scrollWidth)
    assert.ok(wide <= 360, `the page is ${wide} pixels wide`)
  })
})

test("a server with keys asks for one, and shows what it may see", async (t) => {
  const keys = path.join(folder, "keys.toml")
  const key = async (...grants) => {
    const allowed = grants.flatMap((grant) => ["--allow", grant])
    const { stdout } = await promisify(execFile)(PYTHON, ["-m", "durable_streams.cli", "key", "create", "--file", keys, "--json", ...allowed])
    return JSON.parse(stdout).key
  }
  const [operator, reader] = [await key("*:**"), await key("list,read:public/**")]
  const guarded = await serve("--auth", keys)
  for (const name of ["public/a", "secret/b"]) {
    const made = await fetch(guarded.url(name), { method: "PUT", headers: { "content-type": JSON_TYPE, authorization: `Bearer ${operator}` } })
    assert.equal(made.status, 201)
  }
  const page = await open(t, "", guarded)
  await page.getByLabel("Key or token").fill("wrong")
  await button(page, "Use it").click()
  await page.getByText("This key does not open it").waitFor()
  await page.getByLabel("Key or token").fill(reader)
  await button(page, "Use it").click()
  await page.getByRole("link", { name: "public/a" }).waitFor()
  assert.equal(await page.getByText("secret/b").count(), 0)
  await page.getByRole("link", { name: "Server" }).click()
  await page.getByRole("alert").filter({ hasText: "admin" }).waitFor()
})
