// From the bytes of an answer to records, and from JSON text to what is shown: texts stay as they are, so that no number
// loses digits.

export const MOST_RECORDS = 500 // that are shown
const MOST_BYTES = 1 << 20 // of one answer that are shown
const [SPACE, QUOTE, COMMA, ARRAY, BACKSLASH, ARRAY_END, OBJECT, OBJECT_END] = [...' ",[\\]{}'].map((c) => c.charCodeAt(0))
const utf8 = new TextDecoder("utf-8", { ignoreBOM: true })

/** The end of a JSON value that begins at `at`; the text is known to be valid, or cut off. */
function valueEnd(text, at) {
  let depth = 0
  for (let i = at; i < text.length; i += 1) {
    const c = text[i]
    if (c === '"') {
      for (i += 1; i < text.length && text[i] !== '"'; i += 1) if (text[i] === "\\") i += 1
      if (depth === 0) return i + 1
    } else if (c === "{" || c === "[") depth += 1
    else if (c === "}" || c === "]") {
      if (depth === 0) return i
      depth -= 1
      if (depth === 0) return i + 1
    } else if (depth === 0 && c === ",") return i
  }
  return text.length
}

const skip = (text, at) => {
  while (at < text.length && " \t\r\n".includes(text[at])) at += 1
  return at
}

/** Whether the server keeps JSON messages under a content type. */
export const isJson = (contentType) => contentType.split(";")[0].trim().toLowerCase() === "application/json"

/**
 * Collects the records of one answer while it comes in, and keeps few of them: the first ones, or with `last` the last.
 *
 * `take(bytes)` returns whether to go on. A message, or the bytes of one answer, are kept up to MOST_BYTES.
 */
export class Collector {
  #json
  #last
  #found = []
  #kept = 0
  #length = 0
  #array = false // whether its opening bracket was seen
  #depth = 0
  #string = false
  #escaped = false
  #current = null // the record that is not at its end: {at, parts, size, kept}

  constructor(contentType, { last = false } = {}) {
    this.#json = isJson(contentType)
    this.#last = last
    this.contentType = contentType
    this.full = false
    this.skip = 0 // bytes: messages that end before are not wanted
  }

  take(bytes) {
    if (this.#json) this.#messages(bytes)
    else {
      this.#current ??= { at: 0, parts: [], size: 0, kept: 0 }
      this.#add(bytes)
      this.full = !this.#last && this.#current.size > MOST_BYTES
    }
    this.#length += bytes.length
    return !this.full
  }

  #messages(bytes) {
    let begin = this.#current ? 0 : -1
    const end = (index) => {
      if (begin < 0) return
      this.#add(bytes.subarray(begin, index))
      this.#finish()
      begin = -1
    }
    for (let i = 0; i < bytes.length && !this.full; i += 1) {
      const c = bytes[i]
      if (this.#string) {
        if (this.#escaped) this.#escaped = false
        else if (c === BACKSLASH) this.#escaped = true
        else if (c === QUOTE) this.#string = false
        continue
      }
      if (c <= SPACE) continue
      if (!this.#array) {
        this.#array = c === ARRAY
        continue
      }
      if (this.#depth === 0 && (c === COMMA || c === ARRAY_END)) {
        end(i)
        continue
      }
      if (begin < 0) {
        begin = i
        this.#current = { at: this.#length + i, parts: [], size: 0, kept: 0 }
      }
      if (c === QUOTE) this.#string = true
      else if (c === OBJECT || c === ARRAY) this.#depth += 1
      else if (c === OBJECT_END || c === ARRAY_END) this.#depth -= 1
    }
    if (begin >= 0 && !this.full) this.#add(bytes.subarray(begin))
  }

  #add(bytes) {
    const record = this.#current
    record.size += bytes.length
    if (this.#json || !this.#last) {
      const room = MOST_BYTES - record.kept
      if (room > 0) record.parts.push(bytes.slice(0, room))
      record.kept = Math.min(MOST_BYTES, record.kept + bytes.length)
      return
    }
    record.parts.push(bytes)
    record.kept += bytes.length
    while (record.kept - record.parts[0].length >= MOST_BYTES) {
      record.at += record.parts[0].length
      record.kept -= record.parts.shift().length
    }
  }

  #finish() {
    const record = this.#current
    this.#current = null
    if (record.at - 1 + record.size < this.skip) return
    this.#found.push(record)
    this.#kept += record.kept
    const tooMany = () => this.#found.length > MOST_RECORDS || (this.#kept > MOST_BYTES && this.#found.length > 1)
    if (this.#last) while (tooMany()) this.#kept -= this.#found.shift().kept
    else this.full = this.#found.length >= MOST_RECORDS || this.#kept >= MOST_BYTES
  }

  /** Where the answer begins, from where it ends: positions count one separator behind each JSON message. */
  start(next, length) {
    if (this.#json) return length > 2 ? next - (length - 1) : next // `[]` is nothing
    return next - length
  }

  /** The position behind a record. */
  after(record) {
    return record.offset + record.size + (this.#json ? 1 : 0)
  }

  /** The records, {offset, kind, text | bytes, size, cut}; `start` is the position at which the answer begins. */
  records(start) {
    if (!this.#json) return this.#current ? [this.#pieces(start)] : []
    return this.#found.map((record) => {
      const cut = record.size > record.kept
      const text = utf8.decode(joined(record))
      return { offset: start + record.at - 1, kind: cut ? "text" : "json", text, size: record.size, cut }
    })
  }

  #pieces(start) {
    const record = this.#current
    const bytes = joined(record)
    const cut = record.kept < record.size
    let text = null
    try {
      // Its own decoder: one that waits for the rest of a character would add it to the next text.
      text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(cut ? bytes.subarray(this.#last ? inside(bytes) : 0) : bytes, { stream: cut })
    } catch {
      // These are bytes, or a character is cut off.
    }
    const known = { offset: start + record.at, size: bytes.length, cut }
    return text !== null && (/^text\//i.test(this.contentType) || printable(text))
      ? { ...known, kind: "text", text }
      : { ...known, kind: "bytes", bytes }
  }
}

/** How many bytes belong to a character that began before. */
function inside(bytes) {
  let at = 0
  while (at < 3 && (bytes[at] & 0xc0) === 0x80) at += 1
  return at
}

function joined({ parts, kept }) {
  const bytes = new Uint8Array(Math.min(kept, parts.reduce((size, part) => size + part.length, 0)))
  let at = 0
  for (const part of parts) {
    bytes.set(part.subarray(0, bytes.length - at), at)
    at += Math.min(part.length, bytes.length - at)
  }
  return bytes
}

// eslint-disable-next-line no-control-regex
const printable = (text) => !/[\u0000-\u0008\u000e-\u001f]/.test(text)

/** A JSON text as a tree: {open, close, items: [{key, value}]} or a text of one value. */
export function tree(text) {
  let at = 0
  const value = () => {
    at = skip(text, at)
    const open = text[at]
    if (open !== "{" && open !== "[") {
      const end = valueEnd(text, at)
      const leaf = text.slice(at, end).trim()
      at = end
      return leaf
    }
    const close = open === "{" ? "}" : "]"
    const items = []
    at = skip(text, at + 1)
    while (at < text.length && text[at] !== close) {
      let name = null
      if (open === "{") {
        const end = valueEnd(text, at)
        name = text.slice(at, end)
        at = skip(text, end) + 1
      }
      items.push({ name, value: value() })
      at = skip(text, at)
      if (text[at] === ",") at = skip(text, at + 1)
    }
    at += 1
    return { open, close, items }
  }
  return value()
}

const HEX_MOST = 4096

/** Bytes as lines of a hex dump, the first few thousand of them. */
export function hexDump(bytes, offset) {
  const lines = []
  for (let at = 0; at < Math.min(bytes.length, HEX_MOST); at += 16) {
    const row = [...bytes.subarray(at, at + 16)]
    const hex = row.map((byte) => byte.toString(16).padStart(2, "0")).join(" ")
    const text = row.map((byte) => (byte >= 32 && byte < 127 ? String.fromCharCode(byte) : ".")).join("")
    lines.push(`${String(offset + at).padStart(12)}  ${hex.padEnd(47)}  ${text}`)
  }
  if (bytes.length > HEX_MOST) lines.push(`… ${bytes.length - HEX_MOST} more bytes`)
  return lines.join("\n")
}

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"]

export function size(bytes) {
  let unit = 0
  let value = bytes
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024
    unit += 1
  }
  return `${unit && value < 100 ? value.toFixed(1) : Math.round(value)} ${UNITS[unit]}`
}

export const count = (value) => Math.round(value).toLocaleString("en-US")

export function age(moment) {
  if (!moment) return "–"
  const seconds = Math.max(0, (Date.now() - Date.parse(moment)) / 1000)
  if (seconds < 60) return `${Math.round(seconds)} s`
  if (seconds < 3600) return `${Math.round(seconds / 60)} min`
  if (seconds < 86400) return `${Math.round(seconds / 3600)} h`
  return `${Math.round(seconds / 86400)} d`
}
