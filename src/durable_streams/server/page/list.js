// The streams: found by the beginning of their paths, page by page.

import { create, listStreams, position } from "./api.js"
import { html, useRef, useState } from "./preact.js"
import { age, count, size } from "./records.js"
import { linkTo, usePoll, visible } from "./parts.js"

const PAGE = 200
const MOST = 1000 // rows that are kept and asked for again
const EVERY = 2 // seconds

const ORDERS = {
  path: { label: "path", of: null },
  activity: { label: "activity", of: (row) => -(row.rate ?? 0) },
  size: { label: "size", of: (row) => -row.bytes },
  age: { label: "newest", of: (row) => -(Date.parse(row.created) || 0) },
}

export function StreamList({ failed }) {
  const [prefix, search] = useState("")
  const [pages, more] = useState(1)
  const [found, show] = useState({ rows: [], next: null, ready: false })
  const [order, sort] = useState("path")
  const before = useRef(new Map())

  usePoll(
    async (signal) => {
      const rows = []
      let after = ""
      let next = null
      for (let page = 0; page < pages && rows.length < MOST; page += 1) {
        const answer = await listStreams({ prefix, after, limit: PAGE, signal })
        rows.push(...answer.streams)
        next = answer.next
        if (!next) break
        after = next
      }
      show({ rows: withRates(rows, before), next, ready: true })
    },
    EVERY,
    failed,
    [prefix, pages],
  )

  const by = ORDERS[order].of
  const rows = by ? [...found.rows].sort((a, b) => by(a) - by(b)) : found.rows
  return html`
    <div class="bar">
      <label class="grow">Path begins with
        <input type="search" value=${prefix} placeholder="jobs/" spellcheck=${false}
          onInput=${(event) => { more(1); search(event.target.value) }} /></label>
      <label>Order
        <select value=${order} onChange=${(event) => sort(event.target.value)}>
          ${Object.entries(ORDERS).map(([name, { label }]) => html`<option value=${name}>${label}</option>`)}
        </select></label>
      <${NewStream} failed=${failed} />
    </div>
    ${found.ready && !rows.length && html`<p class="empty">${prefix ? "No stream begins like this." : "There is no stream yet. The button New makes one."}</p>`}
    ${rows.length > 0 && html`<div class="scroll"><table class="streams">
      <thead><tr><th>Stream</th><th>Type</th><th class="n">Size</th><th class="n">Rate</th><th class="n">Age</th><th></th></tr></thead>
      <tbody>${rows.map((row) => html`<tr key=${row.path}>
        <td class="path-cell"><a href=${linkTo(row.path)}>${visible(row.path)}</a></td>
        <td class="dim">${row.content_type}</td>
        <td class="n">${size(row.bytes)}</td>
        <td class="n">${row.rate ? `${size(row.rate)}/s` : ""}</td>
        <td class="n">${age(row.created)}</td>
        <td>${row.closed && html`<span class="tag">closed</span>`}${row.forked_from && html`<span class="tag">fork</span>`}</td>
      </tr>`)}</tbody></table></div>`}
    ${found.next && html`<p class="bar">
      <button disabled=${found.rows.length >= MOST} onClick=${() => more(pages + 1)}>Show more</button>
      <span class="dim">${by ? `The order is that of the first ${count(found.rows.length)} paths only` : `The first ${count(found.rows.length)} are shown`}; there are more.
        ${found.rows.length >= MOST ? " A longer prefix narrows them down." : ""}</span></p>`}
  `
}

function withRates(rows, before) {
  const now = performance.now() / 1000
  const known = before.current
  before.current = new Map(rows.map((row) => [row.path, [now, position(row.tail)]]))
  return rows.map((row) => {
    const [at, tail] = known.get(row.path) ?? [now, position(row.tail)]
    return { ...row, rate: now > at ? Math.max(0, position(row.tail) - tail) / (now - at) : 0 }
  })
}

function NewStream({ failed }) {
  const [open, toggle] = useState(false)
  const [path, name] = useState("")
  const [type, choose] = useState("application/json")
  const make = async (event) => {
    event.preventDefault()
    try {
      await create(path, type)
      location.hash = linkTo(path)
    } catch (error) {
      failed(error)
    }
  }
  if (!open) return html`<button onClick=${() => toggle(true)}>New</button>`
  return html`<form class="bar" onSubmit=${make}>
    <label>Path <input required autofocus value=${path} onInput=${(event) => name(event.target.value)} /></label>
    <label>Type <input required list="types" value=${type} onInput=${(event) => choose(event.target.value)} /></label>
    <datalist id="types"><option value="application/json" /><option value="text/plain" /><option value="application/octet-stream" /></datalist>
    <button class="main">Create</button> <button type="button" onClick=${() => toggle(false)}>Cancel</button>
  </form>`
}
