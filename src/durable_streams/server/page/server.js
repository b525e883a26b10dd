// The server: what it does now, and did in the last 15 minutes.

import { stats } from "./api.js"
import { html, useRef, useState } from "./preact.js"
import { count, size } from "./records.js"
import { Chart, usePoll } from "./parts.js"

const EVERY = 2 // seconds
const SPAN = 900 // seconds
const GAP = 30 // seconds without an answer, of a page that was hidden: then the server knows better

/** What is drawn: of an answer of the server, the one before it, and the seconds between them. */
const CHARTS = [
  ["Appends a second", count, (now, was, seconds) => (now.appends - was.appends) / seconds],
  ["Written a second", size, (now, was, seconds) => (now.append_bytes - was.append_bytes) / seconds],
  ["Live readers", count, (now) => sum(now.readers)],
  ["A commit", milliseconds, (now, was) => (now.commits > was.commits ? (now.commit_seconds - was.commit_seconds) / (now.commits - was.commits) : 0)],
  ["Appends that wait", count, (now) => now.queued_commands],
  ["On disk", size, (now) => sum(now.sizes)],
  ["Held for clients", size, (now) => now.held_bytes],
  ["Refusals a second", (value) => value.toFixed(1), (now, was, seconds) => (sum(now.refusals) - sum(was.refusals)) / seconds],
]

const sum = (parts) => Object.values(parts ?? {}).reduce((all, one) => all + one, 0)
function milliseconds(value) {
  return `${(value * 1000).toFixed(2)} ms`
}

function points(answers, figure) {
  return answers.map((now, index) => {
    const was = answers[Math.max(0, index - 1)]
    const value = figure(now, was, now.uptime - was.uptime)
    return [now.uptime, Number.isFinite(value) ? Math.max(0, value) : 0]
  })
}

export function ServerView({ failed }) {
  const [now, show] = useState(null)
  const answers = useRef([])

  usePoll(
    async (signal) => {
      const last = answers.current[answers.current.length - 1]
      let answer = await stats(!last || performance.now() / 1000 - last.at > GAP, signal)
      // Started again, or another process at the same address.
      if (last && answer.instance !== last.instance && !answer.history) answer = await stats(true, signal)
      const { history, ...present } = answer
      const kept = [...(history ?? answers.current), { ...present, at: performance.now() / 1000 }]
      answers.current = kept.filter((one) => one.uptime >= present.uptime - SPAN)
      show(present)
    },
    EVERY,
    failed,
    [],
  )
  if (!now) return null
  return html`
    <div class="charts">${CHARTS.map(([title, shown, figure]) => html`<${Chart} title=${title} show=${shown} points=${points(answers.current, figure)} longest=${SPAN} />`)}</div>
    <dl class="facts">
      <dt>Version</dt><dd>${now.version}, for ${duration(now.uptime)}</dd>
      <dt>Appends since the start</dt><dd>${count(now.appends ?? 0)}, ${size(now.append_bytes ?? 0)}, in ${count(now.commits ?? 0)} commits; ${count(now.failed_commits ?? 0)} failed</dd>
      <dt>Readers</dt><dd>${list(now.readers, count)}</dd>
      <dt>Store</dt><dd>${list(now.sizes, size) || "in memory"}</dd>
      <dt>Streams in memory</dt><dd>${count(now.streams_in_memory ?? 0)}</dd>
      <dt>Deleted, not yet purged</dt><dd>${now.purge_backlog ?? "–"}</dd>
      <dt>Refusals</dt><dd>${list(now.refusals, count) || "none"}</dd>
    </dl>`
}

const list = (parts, shown) => Object.entries(parts ?? {}).map(([name, value]) => `${name} ${shown(value)}`).join(", ")
const duration = (seconds) => (seconds < 3600 ? `${Math.round(seconds / 60)} min` : seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} d`)
