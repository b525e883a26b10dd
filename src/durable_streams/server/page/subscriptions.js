// The subscriptions, and how far behind each of them is.

import { subscriptions } from "./api.js"
import { html, useState } from "./preact.js"
import { count } from "./records.js"
import { usePoll } from "./parts.js"

export function Subscriptions({ failed }) {
  const [found, show] = useState(null)
  usePoll(async (signal) => show(await subscriptions(signal)), 3, failed, [])
  if (!found) return null
  if (!found.length) return html`<p class="empty">There is no subscription. <code>durable-streams subscribe</code> makes one.</p>`
  return html`<div class="scroll"><table>
    <thead><tr><th>Subscription</th><th>Kind</th><th>Streams</th><th>Wakes</th><th class="n">Behind</th></tr></thead>
    <tbody>${found.map((one) => html`<tr key=${one.id ?? one.subscription_id}>
      <td>${one.id ?? one.subscription_id}</td>
      <td>${one.type}</td>
      <td class="dim">${one.pattern ?? (one.streams ?? []).map((stream) => stream.path ?? stream).slice(0, 5).join(", ")}</td>
      <td class="dim">${one.wake_stream ?? one.webhook?.url ?? ""}</td>
      <td class="n">${lagOf(one)}</td>
    </tr>`)}</tbody></table></div>`
}

function lagOf(one) {
  const lag = one.lag ?? one.pending
  return typeof lag === "number" ? count(lag) : lag?.streams !== undefined ? `${count(lag.streams)} streams` : "–"
}
