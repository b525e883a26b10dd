// The server's public HTTP interface. The key of the caller is kept for the tab's session only.

const ROOT = new URL("v1/stream/", new URL(".", location.href))
const KEY = "durable-streams-key"

export const rootUrl = ROOT.href

/** An answer that is not the one that was asked for; `status` is 0 where there was none. */
export class ApiError extends Error {
  constructor(status, code, message) {
    super(message)
    this.status = status
    this.code = code
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
}

/** Percent-encode a path, quotes and parentheses too: it is pasted into shells. */
export const encodePath = (path) =>
  encodeURIComponent(path).replace(/[!'()*]/g, (one) => `%${one.charCodeAt(0).toString(16).toUpperCase()}`).replaceAll("%2F", "/")
/** Not resolved like a link: a path that begins with a slash is below the root too. */
export const streamUrl = (path) => ROOT.href + encodePath(path)

/** Send a request below the stream root; returns the answer, throws ApiError for one that is not a success. */
export async function request(method, url, { headers = {}, body, signal } = {}) {
  const token = key.get()
  const sent = token ? { authorization: `Bearer ${token}`, ...headers } : headers
  let answer
  try {
    answer = await fetch(url, { method, headers: sent, body, signal, cache: "no-store" })
  } catch (error) {
    if (signal?.aborted) throw error
    throw new ApiError(0, "UNREACHABLE", "The server does not answer; the page asks again.")
  }
  if (answer.ok) return answer
  let code = `HTTP_${answer.status}`
  let message = `The server answered ${answer.status}.`
  try {
    const { error } = await answer.json()
    code = error.code
    message = error.message
  } catch {
    // No JSON: something else than this server answered.
  }
  throw new ApiError(answer.status, code, message)
}

const json = async (path, options) => (await request("GET", new URL(path, ROOT), options)).json()

export function listStreams({ prefix = "", after = "", limit = 200, signal } = {}) {
  const query = new URLSearchParams({ limit: String(limit) })
  if (prefix) query.set("prefix", prefix)
  if (after) query.set("after", after)
  return json(`__ds/streams?${query}`, { signal })
}

export const streamInfo = (path, signal) => json(`__ds/streams/${encodePath(path)}`, { signal })
/** Who writes to a stream: {producers: [{id, epoch, seq}], next}. */
export const producers = (path, limit, signal) => json(`__ds/producers/${encodePath(path)}?limit=${limit}`, { signal })
/** What the server counts; with `history` also what it counted in the last 15 minutes. */
export const stats = (history, signal) => json(`__ds/stats${history ? "?history=true" : ""}`, { signal })
export const subscriptions = async (signal) => (await json("__ds/subscriptions", { signal })).subscriptions
/** The subscriptions of a stream, with how far behind they are: [{id, acked_offset, lag_bytes}]. */
export const subscriptionsOf = async (path, signal) =>
  (await json(`__ds/subscriptions?${new URLSearchParams({ stream: path })}`, { signal })).subscriptions
export const subscription = (id, signal) => json(`__ds/subscriptions/${encodeURIComponent(id)}?lag=true`, { signal })

export const position = (offset) => Number(offset.slice(-16))
/** The offset of a position in bytes; `exact`: of one between two messages of an append. */
export const offsetAt = (at, exact = false) =>
  `0000000000000000_${String(Math.max(0, at)).padStart(16, "0")}${exact ? "x" : ""}`

/**
 * Read what follows an offset into a Collector: about `size` bytes, or, with `live`, what comes next.
 *
 * Returns {start, next, upToDate, closed, cursor}: positions in bytes. `exact`: the position begins a message.
 */
export async function read(path, at, into, { size = 1 << 16, exact = false, live, cursor, signal } = {}) {
  const query = new URLSearchParams({ offset: offsetAt(at, exact) })
  if (live) query.set("live", live)
  if (cursor) query.set("cursor", cursor)
  const answer = await request("GET", `${streamUrl(path)}?${query}`, {
    headers: { "stream-max-bytes": String(size) },
    signal,
  })
  const offset = answer.headers.get("stream-next-offset")
  const next = offset === null ? at : position(offset)
  const announced = answer.headers.get("content-length")
  if (!exact && announced !== null) into.skip = at - into.start(next, Number(announced))
  const length = await collect(answer, into)
  return {
    start: exact || length === null ? at : into.start(next, length),
    next,
    upToDate: answer.headers.get("stream-up-to-date") === "true",
    closed: answer.headers.get("stream-closed") === "true",
    cursor: answer.headers.get("stream-cursor"),
  }
}

/** Read an answer's body into a Collector; returns how long it is in all, null where that is not known. */
async function collect(answer, into) {
  const announced = answer.headers.get("content-length")
  let length = 0
  const reader = answer.body?.getReader()
  while (reader) {
    const { done, value } = await reader.read()
    if (done) break
    length += value.length
    if (!into.take(value)) {
      await reader.cancel()
      return announced === null ? null : Number(announced)
    }
  }
  return length
}

export const append = (path, contentType, body) =>
  request("POST", streamUrl(path), { headers: { "content-type": contentType }, body })
export const close = (path) => request("POST", streamUrl(path), { headers: { "stream-closed": "true" } })
export const remove = (path) => request("DELETE", streamUrl(path))
export const create = (path, contentType) =>
  request("PUT", streamUrl(path), { headers: { "content-type": contentType } })
export const fork = (path, to, offset) =>
  request("PUT", streamUrl(to), {
    headers: {
      "stream-forked-from": new URL(streamUrl(path)).pathname,
      ...(offset ? { "stream-fork-offset": offset } : {}),
    },
  })
export const trim = (path, before) =>
  request("POST", new URL(`__ds/streams/${encodePath(path)}/trim`, ROOT), {
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ before }),
  })
