// The subscriptions, and how far behind each of them is.

import { subscription, subscriptions } from "./api.js"
import { html, useState } from "./preact.js"
import { count, size } from "./records.js"
import { linkTo, usePoll } from "./parts.js"

const PAGE = 25 // each of them is a request
const NAMED = 5 // streams of one that are named

export function Subscriptions({ failed }) {
  const [found, show] = useState(null)
  const [most, more] = useState(PAGE)
  usePoll(
    async (signal) => {
      const all = await subscriptions(signal)
      show({ rows: await Promise.all(all.slice(0, most).map(({ id }) => described(id, signal))), all: all.length })
    },
    3,
    failed,
    [most],
  )
  if (!found) return null
  if (!found.all) return html`<p class="empty">There is no subscription. <code>durable-streams subscribe</code> makes one.</p>`
  return html`<div class="scroll"><table>
    <thead><tr><th>Subscription</th><th>Kind</th><th>Streams</th><th>Wakes</th><th>Status</th><th class="n">Behind</th></tr></thead>
    <tbody>${found.rows.map((one) => html`<tr key=${one.id}>
      <td title=${one.description}>${one.id}</td>
      <td>${one.type}</td>
      <td class="dim">${one.pattern} <${Streams} streams=${one.streams ?? []} /></td>
      <td class="dim">${one.wake_stream ? html`<a href=${linkTo(one.wake_stream)}>${one.wake_stream}</a>` : one.webhook?.url}</td>
      <td class="dim">${one.status}</td>
      <td class="n">${one.lag_bytes === undefined ? "–" : size(one.lag_bytes)}</td>
    </tr>`)}</tbody></table></div>
    ${found.all > most && html`<p class="bar"><button onClick=${() => more(most + PAGE)}>Show more</button>
      <span class="dim">The first ${count(most)} of ${count(found.all)} are shown.</span></p>`}`
}

/** What is known of a subscription; only its id where it is gone, or not for this key. */
async function described(id, signal) {
  try {
    return await subscription(id, signal)
  } catch (error) {
    if (error.status !== 404 && error.status !== 403) throw error
    return { id }
  }
}

const Streams = ({ streams }) => html`
  ${streams.slice(0, NAMED).map(({ path }) => html`<a href=${linkTo(path)}>${path}</a> `)}
  ${streams.length > NAMED && `and ${count(streams.length - NAMED)} more`}`
