// The server: what it does now, and in the last 15 minutes that this page has seen.

import { stats } from "./api.js"
import { html, useRef, useState } from "./preact.js"
import { count, size } from "./records.js"
import { Chart, usePoll } from "./parts.js"

const EVERY = 2 // seconds
const SPAN = 900 // seconds

/** What is drawn: of two answers of the server and the seconds between them. */
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

export function ServerView({ failed }) {
  const [now, show] = useState(null)
  const last = useRef(null)
  const series = useRef(CHARTS.map(() => []))

  usePoll(
    async (signal) => {
      const answer = await stats(signal)
      const at = performance.now() / 1000
      const [then, was] = last.current ?? [at - EVERY, answer]
      // A server that was started again counts from zero.
      const before = answer.uptime < was.uptime ? answer : was
      CHARTS.forEach(([, , figure], index) => {
        const value = figure(answer, before, at - then)
        const points = series.current[index]
        points.push([at, Number.isFinite(value) ? Math.max(0, value) : 0])
        while (points.length && points[0][0] < at - SPAN) points.shift()
      })
      last.current = [at, answer]
      show(answer)
    },
    EVERY,
    failed,
    [],
  )
  if (!now) return null
  return html`
    <div class="charts">${CHARTS.map(([title, shown], index) => html`<${Chart} title=${title} show=${shown} points=${series.current[index]} longest=${SPAN} />`)}</div>
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
