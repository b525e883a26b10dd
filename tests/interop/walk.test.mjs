// A newcomer's walk: each command of docs/start.md as it stands there, and the streams on the page in Chromium beside
// it. Only the address is another one. Reading the page takes less than three minutes.

import assert from "node:assert/strict"
import { spawn } from "node:child_process"
import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import path from "node:path"
import { after, test } from "node:test"
import { chromium } from "playwright-core"
import { PYTHON, serve, until } from "./support.mjs"

const ADDRESS = "http://127.0.0.1:4437"
const WORDS_A_MINUTE = 200
const START = await readFile(new URL("../../docs/start.md", import.meta.url), "utf8")

const browser = await chromium.launch({ executablePath: process.env.INTEROP_CHROMIUM, args: ["--no-sandbox", "--disable-gpu"] })
const folder = await mkdtemp(path.join(tmpdir(), "durable-streams-walk-"))
after(async () => {
  await browser.close()
  await rm(folder, { recursive: true, force: true })
})
const server = await serve()
// What `. .venv/bin/activate` does.
await mkdir(path.join(folder, "bin"))
await writeFile(path.join(folder, "bin", "python"), `#!/bin/sh\nexec ${PYTHON} "$@"\n`, { mode: 0o700 })

/** The commands below a heading, in the order of the page. */
function commands(heading) {
  const [section] = START.split(`\n## ${heading}\n`)[1].split("\n## ")
  return [...section.matchAll(/^( {4})?```(sh|python)\n([\s\S]*?)^\1?```$/gm)].map(([, indent, language, code]) => ({
    language,
    code: (indent ? code.replaceAll(/^ {4}/gm, "") : code).replaceAll(ADDRESS, server.origin),
  }))
}

/** Run a command; what it prints is in `printed`, and `ended` gives its exit code. */
function run({ language, code }, t) {
  const [program, ...options] = language === "sh" ? ["bash", "-e", "-c"] : ["python", "-u", "-c"]
  const environment = { ...process.env, PATH: `${path.join(folder, "bin")}:${process.env.PATH}` }
  const started = spawn(program, [...options, code], { cwd: folder, env: environment, detached: true })
  const running = { printed: "", end: () => started.exitCode ?? started.signalCode ?? process.kill(-started.pid, "SIGINT") }
  running.ended = new Promise((resolve) => started.on("exit", resolve))
  for (const output of [started.stdout, started.stderr]) output.setEncoding("utf8").on("data", (text) => (running.printed += text))
  t.after(running.end)
  return running
}

test("takes less than three minutes to read", () => {
  const [walk] = START.split("\n## Where to go on\n")
  const words = walk.split(/\s+/).length
  assert.ok(words / WORDS_A_MINUTE < 3, `docs/start.md has ${words} words`)
})

test("from an empty folder to a stream that is watched in the page", async (t) => {
  const page = await browser.newPage()
  await page.goto(server.origin)
  for (const command of commands("Write a stream, and read it")) {
    const running = run(command, t)
    assert.equal(await running.ended, 0, running.printed)
    assert.match(running.printed, /Las Vegas/)
  }
  await page.getByRole("link", { name: "first", exact: true }).click()
  await page.getByText("Quito").first().waitFor()
  await page.getByRole("button", { name: "Live", exact: true }).click()

  for (const command of commands("Follow it")) {
    const running = run(command, t)
    await until(() => running.printed.includes("Quito"), `the reader has what was there: ${running.printed}`)
    const added = `Lima ${command.language}`
    const answer = await fetch(server.url("first"), {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ city: added }),
    })
    assert.equal(answer.status, 204)
    await until(() => running.printed.includes(added), "the reader has what came")
    await page.getByText(added).first().waitFor()
    if (command.language === "python") {
      await server.restart()
      await fetch(server.url("first"), { method: "POST", headers: { "content-type": "application/json" }, body: '{"city": "Bern"}' })
      await until(() => running.printed.includes("Bern"), "the reader goes on behind a restart")
      assert.equal(running.printed.split("Quito").length, 2, "nothing comes twice")
    }
    running.end()
    await running.ended
  }

  for (const command of commands("Clean up")) {
    const running = run(command, t)
    assert.equal(await running.ended, 0, running.printed)
  }
  assert.equal((await fetch(server.url("first"))).status, 404)
})
