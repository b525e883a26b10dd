// One stream: what it is, what it holds, and what can be done to it.

import * as api from "./api.js"
import { html, useEffect, useRef, useState } from "./preact.js"
import { age, Collector, count, hexDump, isJson, MOST_RECORDS, size, tree } from "./records.js"
import { Copied, linkTo, Sure, usePoll, visible } from "./parts.js"

const WINDOW = 1 << 16 // bytes that are read at a time
const DRAWN = 250 // milliseconds between two pictures of a live tail
const LIVE_RECORDS = 200 // of a live tail: all of them may be new in each picture, and typing waits meanwhile
const AGAIN = 2 // seconds after a failure

export function StreamView({ path, failed }) {
  const [info, learn] = useState(null)
  const [gone, end] = useState(false)
  usePoll(
    async (signal) => {
      try {
        learn(await api.streamInfo(path, signal))
        end(false)
      } catch (error) {
        if (error.status !== 404) throw error
        end(true)
      }
    },
    2,
    failed,
    [path],
  )
  if (gone) return html`<p class="empty">There is no stream <b>${visible(path)}</b>. <a href="#/">All streams</a></p>`
  if (!info) return null
  return html`
    <h1 class="path">${visible(path)} ${info.closed && html`<span class="tag">closed</span>`}</h1>
    <${Facts} info=${info} />
    <${Records} key=${info.created} path=${path} info=${info} failed=${failed} />
    <${Actions} path=${path} info=${info} failed=${failed} />
    <${Producers} path=${path} failed=${failed} />
    <${Followers} path=${path} failed=${failed} />
    <${Forks} path=${path} info=${info} failed=${failed} />
    <${Code} path=${path} info=${info} />
  `
}

function Facts({ info }) {
  const facts = [
    ["Type", info.content_type],
    ["Size", `${size(info.bytes)} (${count(info.bytes)} bytes)`],
    ["Appends", info.records === undefined || info.records === null ? null : count(info.records)],
    ["Created", info.created && `${info.created} (${age(info.created)} ago)`],
    ["Last append", info.last_append && `${info.last_append} (${age(info.last_append)} ago)`],
    ["Begins at", info.earliest],
    ["Ends at", info.tail],
    ["Lifetime", info.ttl_seconds && `${info.ttl_seconds} s after the last use`],
    ["Expires", info.expires_at],
    ["Retention", info.retention && Object.entries(info.retention).map(([name, value]) => `${name} ${value}`).join(", ")],
  ]
  return html`<dl class="facts">${facts.filter(([, value]) => value).map(([name, value]) => html`<dt>${name}</dt><dd>${value}</dd>`)}</dl>`
}

/** What is shown of a stream: the records from `from` on, to `next`. */
function Records({ path, info, failed }) {
  const [shown, show] = useState({ records: [], from: null, next: null, atTail: false })
  const [live, follow] = useState(false)
  const [target, aim] = useState("")
  const [busy, work] = useState(false)
  const earliest = api.position(info.earliest)
  const tail = api.position(info.tail)

  const at = async (position, { exact = false, last = false } = {}) => {
    work(true)
    try {
      const asked = Math.min(Math.max(position, earliest), tail)
      const into = new Collector(info.content_type, { last })
      // Bytes are read from anywhere; messages from the start of the append that holds the position.
      const answer = await api.read(path, asked, into, { size: WINDOW, exact: exact || !isJson(info.content_type) })
      const found = into.records(answer.start)
      const records = last ? found : found.filter((record) => record.offset + record.size >= asked)
      const end = found[found.length - 1]
      const next = into.full && end ? into.after(end) : answer.next
      show({ records, from: records[0]?.offset ?? answer.start, next, inside: into.full, atTail: !into.full && answer.upToDate })
      failed(null)
    } catch (error) {
      failed(error)
    }
    work(false)
  }
  const toTail = () => at(tail - WINDOW / 4, { last: true })
  useEffect(() => {
    at(earliest)
  }, [path])
  useTail(live, path, info, shown, show, failed)
  const list = useRef(null)
  const follows = useRef(true) // until somebody scrolls up
  useEffect(() => {
    if (live && list.current && follows.current) list.current.scrollTop = list.current.scrollHeight
  }, [live, shown.records])
  const scrolled = ({ target }) => {
    follows.current = target.scrollHeight - target.scrollTop - target.clientHeight < 40
  }

  const jump = (event) => {
    event.preventDefault()
    const position = /^\d+$/.test(target) ? Number(target) : api.position(target)
    if (Number.isFinite(position)) at(position)
    else failed(new Error(`${target} is not an offset: give one of this stream, or a count of bytes.`))
  }
  return html`<section class="card" aria-label="Records">
    <div class="bar">
      <button disabled=${busy || live} onClick=${() => at(earliest)}>Start</button>
      <button disabled=${busy || live || !shown.from || shown.from <= earliest} onClick=${() => at(shown.from - WINDOW / 4)}>Earlier</button>
      <button disabled=${busy || live || shown.atTail || shown.next === null} onClick=${() => at(shown.next, { exact: shown.inside })}>Later</button>
      <button disabled=${busy || live} onClick=${toTail}>Tail</button>
      <button class=${live ? "main on" : "main"} aria-pressed=${live} disabled=${busy}
        onClick=${async () => { if (!live) await toTail(); follow(!live) }}>${live ? "Pause" : "Live"}</button>
      <form class="bar" onSubmit=${jump}><label>Offset <input size="12" value=${target} disabled=${live} onInput=${(event) => aim(event.target.value)} /></label>
        <button disabled=${busy || live || !target}>Go</button></form>
      ${shown.rate > 0 && live && html`<span class="dim" role="status">${count(shown.rate)} records/s</span>`}
    </div>
    ${shown.records.length
      ? html`<ol class="records" tabindex="0" ref=${list} onScroll=${scrolled}>${shown.records.map((record) => html`<${Record} key=${`${record.offset}-${record.size}`} record=${record} />`)}</ol>`
      : html`<p class="empty">Nothing is here yet.</p>`}
    <p class="dim">${shown.from !== null && `Bytes ${count(shown.from)} to ${count(shown.next)} of ${count(Math.max(tail, shown.next))}.`}
      ${shown.records.length >= MOST_RECORDS ? ` At most ${MOST_RECORDS} records are shown.` : ""}</p>
  </section>`
}

/** Follow the stream by long-polls while `live` is true: they are exact for every type. */
function useTail(live, path, info, shown, show, failed) {
  const place = useRef(null)
  place.current = shown
  useEffect(() => {
    if (!live) return undefined
    const aborter = new AbortController()
    let waiting = []
    let came = 0
    let drawn = performance.now()
    let next = place.current.next ?? api.position(info.tail)
    const draw = () => {
      const seconds = (performance.now() - drawn) / 1000
      drawn = performance.now()
      const [added, number] = [waiting, came]
      waiting = []
      came = 0
      show((was) => {
        const records = added.length ? [...was.records, ...added].slice(-LIVE_RECORDS) : was.records
        return { records, from: records[0]?.offset ?? was.from, next, atTail: true, rate: number / seconds }
      })
    }
    const timer = setInterval(draw, DRAWN)
    const run = async () => {
      let cursor = null
      let problem
      while (!aborter.signal.aborted) {
        try {
          const into = new Collector(info.content_type, { last: true })
          const answer = await api.read(path, next, into, { size: 1 << 19, live: "long-poll", cursor, signal: aborter.signal })
          const records = into.records(answer.start)
          ;({ next, cursor } = answer)
          came += records.length
          waiting = [...waiting, ...records].slice(-LIVE_RECORDS)
          if (problem) failed(null, problem)
          problem = undefined
          if (answer.closed && answer.upToDate) return
        } catch (error) {
          if (aborter.signal.aborted) return
          problem = error
          failed(error)
          if (error.status === 410) next = await earliestOf(path, aborter.signal, next)
          await new Promise((resolve) => setTimeout(resolve, AGAIN * 1000))
        }
      }
    }
    run()
    return () => {
      aborter.abort()
      clearInterval(timer)
      draw()
    }
  }, [live, path])
}

/** Where a stream begins now, of which the data at a position were given up; that position if it cannot be found out. */
async function earliestOf(path, signal, position) {
  try {
    return Math.max(position, api.position((await api.streamInfo(path, signal)).earliest))
  } catch {
    return position
  }
}

function Record({ record }) {
  const [open, toggle] = useState(record.kind !== "json")
  const line = record.kind === "json" && html`<button class="fold" aria-expanded=${open} onClick=${() => toggle(!open)}>${open ? "▾" : "▸"}</button>`
  return html`<li>
    <span class="offset" title="position in bytes">${count(record.offset)}</span>${line}
    ${record.kind === "json" && !open && html`<code class="line">${record.text.slice(0, 400)}</code>`}
    ${record.kind === "json" && open && html`<div class="tree"><${Tree} value=${tree(record.text)} /></div>`}
    ${record.kind === "text" && html`<pre>${record.text}</pre>`}
    ${record.kind === "bytes" && html`<pre>${hexDump(record.bytes, record.offset)}</pre>`}
    ${record.cut && html`<em>Not all of it is shown.</em>`}
  </li>`
}

const SHOWN_ITEMS = 200

function Tree({ name = null, value, depth = 0 }) {
  const [open, toggle] = useState(depth < 3)
  const label = name !== null && html`<span class="name">${name}: </span>`
  if (typeof value === "string") {
    const kind = value[0] === '"' ? "string" : /[-0-9]/.test(value[0]) ? "number" : "word"
    return html`<div>${label}<span class=${kind}>${value}</span></div>`
  }
  if (!value.items.length) return html`<div>${label}${value.open}${value.close}</div>`
  return html`<div>
    <button class="fold" aria-expanded=${open} onClick=${() => toggle(!open)}>${open ? "▾" : "▸"}</button>${label}${value.open}
    ${open
      ? html`<div class="inner">${value.items.slice(0, SHOWN_ITEMS).map((item) => html`<${Tree} name=${item.name} value=${item.value} depth=${depth + 1} />`)}
          ${value.items.length > SHOWN_ITEMS && html`<em>${value.items.length - SHOWN_ITEMS} more</em>`}</div>${value.close}`
      : html` <span class="dim">${value.items.length}</span> ${value.close}`}
  </div>`
}

function Actions({ path, info, failed }) {
  const [text, write] = useState("")
  const [said, say] = useState("")
  const [target, aim] = useState(`${path}-fork`)
  const [before, cut] = useState("")
  const act = (what, done) => async (event) => {
    event?.preventDefault()
    try {
      await what()
      failed(null)
      say(done)
    } catch (error) {
      say("")
      failed(error)
    }
  }
  const append = act(async () => {
    await api.append(path, info.content_type, text)
    write("")
  }, "Appended: it is on disk.")
  const fork = act(async () => {
    await api.fork(path, target)
    location.hash = linkTo(target)
  }, "")
  const trim = act(() => api.trim(path, /^\d+$/.test(before) ? api.offsetAt(Number(before)) : before), "Trimmed.")
  return html`<section class="card" aria-label="Actions">
    ${!info.closed && html`<form onSubmit=${append}>
      <label>Append ${isJson(info.content_type) ? "a JSON message" : "text"}
        <textarea rows="2" value=${text} spellcheck=${false} onInput=${(event) => write(event.target.value)}></textarea></label>
      <div class="bar"><button class="main" disabled=${!text}>Append</button><span role="status">${said}</span></div></form>`}
    <details><summary>Fork, trim, close, delete</summary>
      <form class="bar" onSubmit=${fork}><label>Fork to <input value=${target} onInput=${(event) => aim(event.target.value)} /></label><button>Fork</button></form>
      <form class="bar" onSubmit=${(event) => event.preventDefault()}><label>Trim what is before <input value=${before} placeholder="offset, or bytes" onInput=${(event) => cut(event.target.value)} /></label>
        <${Sure} label="Trim" question="These records are removed for good." disabled=${!before} act=${trim} /></form>
      <div class="bar">
        ${!info.closed && html`<${Sure} label="Close" question="A closed stream can never be written again." act=${act(() => api.close(path), "Closed.")} />`}
        <${Sure} label="Delete" question=${`All ${size(info.bytes)} of ${visible(path)} are removed for good.`}
          act=${act(async () => { await api.remove(path); location.hash = "#/" }, "")} />
      </div></details>
  </section>`
}

const MOST_PRODUCERS = 100
const MOST_FOLLOWERS = 100
const LISTED_EVERY = 3 // seconds

/** What a request gives; null where that is not there, or not for this key. */
async function optional(asked) {
  try {
    return await asked
  } catch (error) {
    if (error.status !== 404 && error.status !== 403) throw error
    return null
  }
}

/** Who writes exactly once, and how far each came. */
function Producers({ path, failed }) {
  const [found, show] = useState(null)
  usePoll(async (signal) => show(await optional(api.producers(path, MOST_PRODUCERS, signal))), LISTED_EVERY, failed, [path])
  if (!found?.producers.length) return null
  return html`<section class="card" aria-label="Producers"><h2>Producers</h2>
    <div class="rows"><table>
      <thead><tr><th>Producer</th><th class="n">Epoch</th><th class="n">Last request</th></tr></thead>
      <tbody>${found.producers.map((one) => html`<tr key=${one.id}><td class="name">${visible(one.id)}</td><td class="n">${one.epoch}</td><td class="n">${one.seq}</td></tr>`)}</tbody>
    </table></div>
    ${found.next !== null && html`<p class="dim">The first ${MOST_PRODUCERS} by name; there are more.</p>`}
  </section>`
}

/** The subscriptions of the stream, and how far behind each is. */
function Followers({ path, failed }) {
  const [found, show] = useState(null)
  usePoll(async (signal) => show(await optional(api.subscriptionsOf(path, signal))), LISTED_EVERY, failed, [path])
  if (!found?.length) return null
  return html`<section class="card" aria-label="Subscriptions"><h2>Subscriptions</h2>
    <div class="rows"><table>
      <thead><tr><th>Subscription</th><th class="n">Acknowledged to</th><th class="n">Behind</th></tr></thead>
      <tbody>${found.slice(0, MOST_FOLLOWERS).map((one) => html`<tr key=${one.id}><td class="name">${one.id}</td><td class="n">${count(Math.max(0, api.position(one.acked_offset)))}</td><td class="n">${size(one.lag_bytes)}</td></tr>`)}</tbody>
    </table></div>
    ${found.length > MOST_FOLLOWERS && html`<p class="dim">${count(found.length - MOST_FOLLOWERS)} more are not shown.</p>`}
  </section>`
}

const ANCESTORS = 8

/** The stream between what it was forked from and what was forked from it, as a picture. */
function Forks({ path, info, failed }) {
  const [family, meet] = useState(null)
  useEffect(() => {
    if (!info.forked_from && !info.forks) return meet(null)
    const aborter = new AbortController()
    const look = async () => {
      const parents = []
      for (let at = info.forked_from; at && parents.length < ANCESTORS; ) {
        parents.unshift(at)
        try {
          at = (await api.streamInfo(at, aborter.signal)).forked_from
        } catch (error) {
          if (error.status !== 404 && error.status !== 403) throw error
          at = null // deleted, or not for this key
        }
      }
      const { streams } = info.forks ? await api.listStreams({ limit: 1000, signal: aborter.signal }) : { streams: [] }
      meet({ parents, children: streams.filter((one) => one.forked_from === path).map((one) => one.path).slice(0, 20) })
    }
    look().catch(failed)
    return () => aborter.abort()
  }, [path, info.forked_from, info.forks])
  if (!family) return null
  const rows = [
    ...family.parents.map((name, depth) => ({ name, depth })),
    { name: path, depth: family.parents.length, own: true },
    ...family.children.map((name) => ({ name, depth: family.parents.length + 1 })),
  ]
  const step = 26
  return html`<section class="card" aria-label="Forks"><h2>Forks</h2>
    <svg class="forks" height=${rows.length * step + 8} role="img" aria-label="What was forked from what">
      ${rows.map((row, index) => {
        const [x, y] = [12 + row.depth * 22, 18 + index * step]
        const parent = rows.findIndex((one) => one.depth === row.depth - 1)
        return html`
          ${parent >= 0 && html`<path d="M${x - 22} ${18 + parent * step}V${y}H${x - 5}" fill="none" />`}
          <circle cx=${x} cy=${y} r="5" class=${row.own ? "own" : ""} />
          <a href=${linkTo(row.name)}><text x=${x + 12} y=${y + 4}>${visible(row.name)}</text></a>`
      })}
    </svg>
    ${info.forks > family.children.length && html`<p class="dim">${count(info.forks)} forks exist; of these ${count(family.children.length)} are among the first streams of the list.</p>`}
  </section>`
}

function Code({ path, info }) {
  const url = api.streamUrl(path)
  const json = isJson(info.content_type)
  const token = api.key.get() ? ' -H "authorization: Bearer $KEY"' : ""
  return html`<section class="card" aria-label="The same in code"><h2>The same in code</h2>
    <h3>curl</h3><${Copied} text=${`curl -N${token} '${url}?offset=-1&live=sse'`} />
    <h3>Python</h3><${Copied} text=${`from durable_streams import stream

for ${json ? "record" : "chunk"} in stream("${url}", live=True).${json ? "iter_json" : "iter_bytes"}():
    print(${json ? "record" : "chunk"})`} />
    <h3>JavaScript</h3><${Copied} text=${`import { stream } from "@durable-streams/client"

const answer = await stream({ url: "${url}", live: true })
${json ? "answer.subscribeJson(({ items }) => console.log(items))" : "answer.subscribeBytes(({ data }) => console.log(data))"}`} />
  </section>`
}
