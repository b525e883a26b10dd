// The inspector in headless Chromium: every view, what streams contain is shown and never executed, a server that is
// killed under an open page, and keys.

import assert from "node:assert/strict"
import { execFile } from "node:child_process"
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import path from "node:path"
import { after, describe, test } from "node:test"
import { promisify } from "node:util"
import { chromium } from "playwright-core"
import { fresh, PYTHON, serve, serveFolder, sleep, until } from "./support.mjs"

const JSON_TYPE = "application/json"
const TEXT_TYPE = "text/plain"
// A million by hand: INSPECTOR_STREAMS=1000000 make interop ARGS=inspector
const STREAMS = Number(process.env.INSPECTOR_STREAMS ?? 10_000)
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

const encodePath = (stream) => stream.split("/").map(encodeURIComponent).join("/")
const linkTo = (stream) => `#/stream/${encodePath(stream)}`

async function create(stream, contentType = JSON_TYPE, body = undefined) {
  const url = server.url(encodePath(stream))
  const made = await fetch(url, { method: "PUT", headers: { "content-type": contentType }, body })
  assert.equal(made.status, 201)
  return url
}

async function append(url, body, contentType = JSON_TYPE, headers = {}) {
  const answer = await fetch(url, { method: "POST", headers: { "content-type": contentType, ...headers }, body })
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
    await page.getByText("Bytes 0 to 0 of 0.").waitFor()
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

test("very many streams are listed, found and put in order", async (t) => {
  const data = path.join(folder, "many", "data")
  await promisify(execFile)(PYTHON, ["many_streams.py", data, String(STREAMS)])
  const many = await serveFolder(path.dirname(data))
  const began = performance.now()
  const page = await open(t, "", many)
  await page.getByRole("link", { name: "many/0000199" }).waitFor()
  t.diagnostic(`the page shows the first of ${STREAMS} streams after ${Math.round(performance.now() - began)} ms`)
  const last = `many/${String(STREAMS - 1).padStart(7, "0")}`
  await page.getByLabel("Path begins with").fill(last.slice(0, -1))
  await page.getByRole("link", { name: last }).waitFor()
  assert.equal(await page.locator("tbody tr").count(), 10)
  await page.getByLabel("Path begins with").fill("many/")
  await page.getByRole("link", { name: "many/0000000" }).waitFor()
  const orders = () => page.getByLabel("Order")
  await orders().selectOption("size")
  const first = async () => (await page.locator("tbody tr a").first().textContent()).trim()
  assert.equal(await first(), "many/0000096")
  await page.getByText("The order is that of the first 200 paths only").waitFor()
  await orders().selectOption("activity")
  await fetch(many.url("many/0000007"), { method: "POST", headers: { "content-type": TEXT_TYPE }, body: "y".repeat(5000) })
  await until(async () => (await first()) === "many/0000007", "the busy stream comes first")
  for (let rows = 400; rows <= 1000; rows += 200) {
    await button(page, "Show more").click()
    await until(async () => (await page.locator("tbody tr").count()) === rows, `${rows} streams are shown`)
  }
  assert.ok(await button(page, "Show more").isDisabled())
  await many.kill()
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
    const inside = JSON.stringify(records.slice(0, 12_345)).length // one byte behind the comma before it
    await page.getByLabel("Offset").fill(String(inside + 3))
    await button(page, "Go").click()
    await until(async () => (await shown(page))[0]?.includes('"number":12345,'), "the record at an offset is shown")
    await button(page, "Later").click()
    await until(async () => (await shown(page))[0]?.includes('"number":12845,'), "and what follows")
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
    await page.getByLabel("Offset").fill("30000001")
    await button(page, "Go").click()
    await page.getByText("30000001  02 03 01 02").first().waitFor()
  })

  test("is followed, appended to, forked, trimmed, closed and deleted", async (t) => {
    const name = fresh("whole")
    const url = await create(name)
    await append(url, "[1,2,3]")
    const page = await open(t, linkTo(name))
    await button(page, "Live").click()
    await page.getByLabel("Append a JSON message").fill("{refused")
    await button(page, "Append").click()
    const refused = page.getByRole("alert").filter({ hasText: "not valid JSON" })
    await refused.waitFor()
    for (let asked = 0; asked < 3; asked += 1) await page.waitForResponse(/__ds\/streams/)
    assert.ok(await refused.isVisible(), "it is said until something else is done")
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

  test("may have any name", async (t) => {
    const page = await open(t)
    const names = [`"'()$(id)';`, "a%2Fb%", "/begins//with/slashes/", "//example.com/x", "\u202egnp.exe\u200f", "ü \u{1f600}?#&", "n".repeat(1000)]
    for (const ending of names) {
      const name = ending.startsWith("//") ? `${ending}-${fresh("name")}` : `${ending}${fresh("name")}`
      await append(await create(name, TEXT_TYPE), `in ${ending}`, TEXT_TYPE)
      await page.goto(`${server.origin}/${linkTo(name)}`)
      const visible = name.replace("\u202e", "\\u{202e}").replace("\u200f", "\\u{200f}")
      await until(async () => (await page.locator("h1.path").textContent())?.trim() === visible, `${name} is shown`)
      await page.locator(".records pre", { hasText: `in ${ending}` }).waitFor()
      const [curl] = await page.locator(".code pre").allTextContents()
      assert.match(curl, /^curl -N '[^'"()\s]+'$/)
      assert.equal(await page.evaluate(() => document.documentElement.scrollWidth > innerWidth), false, name)
    }
    await page.goto(`${server.origin}/#/stream/%`)
    await page.getByLabel("Path begins with").waitFor()
  })

  test("is shown as it is, whatever it holds", async (t) => {
    const page = await open(t)
    const name = fresh("strange")
    const messages = ["9007199254740993", "1.0", "1", "1e400", '{"a":1,"a":2}', '"\\ud800"', '"</script><script>"', '"\\u0000"', '"\\u202e\u202e"']
    await append(await create(name), `[${messages.join(",")}]`)
    await page.goto(`${server.origin}/${linkTo(name)}`)
    await until(async () => (await shown(page)).join() === messages.join(), "the messages are shown as they are")
    const contents = [
      ["text/html", Buffer.from("<b>caf\u00e9</b>\u0000"), "pre", "<b>caf\u00e9</b>"],
      ["image/svg+xml", Buffer.from("<svg onload='window.hacked=1'/>"), "pre", "<svg onload"],
      ["text/plain", Buffer.from([0x61, 0xff, 0x62]), "pre", "61 ff 62"],
      ["application/x-json-like", Buffer.from("[1,2"), "pre", "[1,2"],
      ["application/problem+json", Buffer.from('{"a":1}'), "pre", '{"a":1}'],
    ]
    for (const [type, body, element, text] of contents) {
      const one = fresh("typed")
      await create(one, type, body)
      await page.goto(`${server.origin}/${linkTo(one)}`)
      await page.locator(`.records ${element}`, { hasText: text }).waitFor()
    }
    assert.equal(await page.evaluate(() => window.hacked), undefined)
  })

  test("that was trimmed, or made again, under an open tail is followed from its new beginning", async (t) => {
    const name = fresh("trimmed")
    const url = await create(name)
    await append(url, "[1,2]")
    const page = await open(t, linkTo(name))
    await button(page, "Live").click()
    await until(async () => (await shown(page)).join() === "1,2", "it is followed")
    const cutOff = page.waitForEvent("requestfailed", (request) => request.url().includes("live="))
    await page.context().setOffline(true)
    await cutOff // a read that was under way goes on to its end
    await append(url, "3")
    await append(url, "4")
    const cut = await fetch(server.url(`__ds/streams/${name}/trim`), { method: "POST", headers: { "content-type": JSON_TYPE }, body: '{"max_bytes":2}' })
    assert.ok(cut.ok, await cut.text())
    await page.context().setOffline(false)
    await until(async () => (await shown(page)).join() === "1,2,4", "it goes on at the new beginning")
    assert.equal((await fetch(url, { method: "DELETE" })).status, 204)
    await page.getByText("There is no stream").waitFor()
    await create(name, JSON_TYPE, '["new"]')
    await until(async () => (await shown(page)).join() === '"new"', "the new stream is shown")
  })

  test("names its producers and its subscriptions, with how far behind they are", async (t) => {
    const name = fresh("produced")
    const url = await create(name)
    await append(await create(fresh("other")), "1")
    const id = fresh("followers")
    const wakes = fresh("wakes")
    await create(wakes)
    const made = await fetch(server.url(`__ds/subscriptions/${id}`), {
      method: "PUT",
      headers: { "content-type": JSON_TYPE },
      body: JSON.stringify({ type: "pull-wake", streams: [name], wake_stream: wakes }),
    })
    assert.ok(made.ok, await made.text())
    for (const seq of ["0", "1"]) {
      await append(url, "12345678", JSON_TYPE, { "producer-id": HOSTILE, "producer-epoch": "7", "producer-seq": seq })
    }
    const page = await open(t, linkTo(name))
    await page.getByRole("region", { name: "Producers" }).getByRole("row", { name: `${HOSTILE} 7 1` }).waitFor()
    await page.getByRole("region", { name: "Subscriptions" }).getByRole("row", { name: `${id} 0 18 B` }).waitFor()
    await page.getByRole("link", { name: "Subscriptions" }).click()
    await page.getByRole("row", { name: `${id} pull-wake` }).getByRole("cell", { name: "18 B" }).waitFor()
    assert.equal(await page.evaluate(() => window.hacked), undefined)
  })

  test("is reached and read with the keyboard alone", async (t) => {
    const name = fresh("keyboard")
    await append(await create(name), '{"pressed":[1,2]}')
    const page = await open(t)
    await page.getByLabel("Path begins with").focus()
    await page.keyboard.type(name)
    await until(async () => (await page.locator("tbody tr").count()) === 1, "it is found")
    const tabTo = async (what) => {
      for (let presses = 0; presses < 60; presses += 1) {
        await page.keyboard.press("Tab")
        if (await page.evaluate((text) => document.activeElement.textContent.trim() === text, what)) return
      }
      assert.fail(`${what} is not reached`)
    }
    await tabTo(name)
    await page.keyboard.press("Enter")
    await page.locator(".records .fold").waitFor()
    await tabTo("▸")
    await page.keyboard.press("Enter")
    await page.locator(".tree .number", { hasText: "2" }).waitFor()
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
    assert.ok((await page.locator(".records li").count()) <= 200)
    await button(page, "Pause").click()
    going = false
    await writer
  })
})

describe("the other views", () => {
  test("show the server's figures, and go on after a restart", async (t) => {
    const page = await open(t)
    const answered = page.waitForResponse(/history=true/)
    await page.goto(`${server.origin}/#/server`)
    const { history } = await (await answered).json()
    assert.ok(history.length > 0)
    await page.getByText("Appends since the start").waitFor()
    const points = (await page.locator(".chart polyline").first().getAttribute("points")).split(" ")
    assert.ok(points.length > history.length, "what was before the page was opened is drawn")
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
  assert.ok(!page.url().includes(reader))
  // The key ends while the page is open.
  await page.getByRole("link", { name: "Streams", exact: true }).click()
  await page.getByRole("link", { name: "public/a" }).waitFor()
  const known = await readFile(keys, "utf8")
  await writeFile(keys, known.slice(0, known.lastIndexOf("[[key]]")))
  await page.getByText("This key does not open it").waitFor()
  await page.getByLabel("Key or token").fill("caf\u00e9 \u2603")
  await button(page, "Use it").click()
  assert.ok(await page.getByLabel("Key or token").evaluate((input) => !input.validity.valid))
  await button(page, "Forget the key").click()
  await page.getByText("This server wants a key").waitFor()
  assert.deepEqual(await page.evaluate(() => [sessionStorage.length, localStorage.length, document.cookie]), [0, 0, ""])
})
