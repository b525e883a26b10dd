// What several views use: asking again and again, pictures of figures, a confirmation.

import { encodePath } from "./api.js"
import { html, useEffect, useRef, useState } from "./preact.js"

/** Call `ask(signal)` now and every `seconds`; a hidden page does not ask. It takes its own errors back. */
export function usePoll(ask, seconds, failed, dependencies) {
  useEffect(() => {
    const aborter = new AbortController()
    let timer = null
    let problem
    const turn = async () => {
      if (!document.hidden) {
        try {
          await ask(aborter.signal)
          if (!aborter.signal.aborted && problem) failed(null, problem)
          problem = undefined
        } catch (error) {
          problem = error
          if (!aborter.signal.aborted) failed(error)
        }
      }
      if (!aborter.signal.aborted) timer = setTimeout(turn, seconds * 1000)
    }
    turn()
    return () => {
      aborter.abort()
      clearTimeout(timer)
    }
  }, dependencies)
}

const LEAST_SPAN = 60 // seconds

/** A line through [seconds, value] pairs: all of them, of the last `longest` seconds. */
export function Chart({ title, points, show, longest }) {
  const width = 300
  const height = 60
  const now = points.length ? points[points.length - 1][0] : 0
  const span = Math.min(longest, Math.max(LEAST_SPAN, points.length ? now - points[0][0] : 0))
  const kept = points.filter(([at]) => at >= now - span)
  const most = Math.max(...kept.map(([, value]) => value), 1e-9)
  const line = kept
    .map(([at, value]) => `${(width * (1 - (now - at) / span)).toFixed(1)},${(height - 4 - (value / most) * (height - 8)).toFixed(1)}`)
    .join(" ")
  const last = kept.length ? kept[kept.length - 1][1] : 0
  return html`<figure class="card chart">
    <figcaption>${title} <b>${show(last)}</b></figcaption>
    <svg viewBox="0 0 ${width} ${height}" preserveAspectRatio="none" role="img"
      aria-label="${title}: ${show(last)} now, ${show(most)} at most in the last minutes">
      <polyline points=${line} fill="none" vector-effect="non-scaling-stroke" />
    </svg>
    <small>at most ${show(most)}</small>
  </figure>`
}

/** A button that asks before it acts. */
export function Sure({ label, question, act, disabled }) {
  const [asks, ask] = useState(false)
  const no = useRef(null)
  useEffect(() => {
    if (asks) no.current?.focus()
  }, [asks])
  if (!asks) return html`<button class="danger" disabled=${disabled} onClick=${() => ask(true)}>${label}</button>`
  return html`<span class="sure" role="alertdialog" aria-label=${question}>
    ${question} <button class="danger" onClick=${() => { ask(false); act() }}>${label}</button>
    <button ref=${no} onClick=${() => ask(false)}>Keep it</button>
  </span>`
}

export function Copied({ text }) {
  const [done, finish] = useState(false)
  const copy = async () => {
    await navigator.clipboard.writeText(text)
    finish(true)
    setTimeout(() => finish(false), 1500)
  }
  return html`<div class="code"><pre>${text}</pre>
    <button class="quiet" onClick=${copy}>${done ? "Copied" : "Copy"}</button></div>`
}

/** A name with the characters that nobody sees, or that turn the order of others round, written out. */
export const visible = (name) =>
  name.replace(/[\p{Cf}\p{Zl}\p{Zp}]/gu, (one) => `\\u{${one.codePointAt(0).toString(16)}}`)

export const linkTo = (path) => `#/stream/${encodePath(path)}`
