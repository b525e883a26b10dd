// The frame of the page: where it is, whose key it has, and what failed.

import { ApiError, key } from "./api.js"
import { html, render, useEffect, useState } from "./preact.js"
import { StreamList } from "./list.js"
import { ServerView } from "./server.js"
import { StreamView } from "./stream.js"
import { Subscriptions } from "./subscriptions.js"

const here = () => {
  const [, view, path] = /^#?\/?([^/]*)\/?(.*)$/s.exec(location.hash)
  try {
    return { view, path: decodeURIComponent(path) }
  } catch {
    return { view: "", path: "" } // a link that somebody cut off
  }
}

function App() {
  const [place, go] = useState(here)
  const [asks, ask] = useState(false)
  const [error, fail] = useState(null)
  useEffect(() => {
    const moved = () => {
      fail(null)
      go(here())
    }
    addEventListener("hashchange", moved)
    return () => removeEventListener("hashchange", moved)
  }, [])

  /** Show an error; or take one back, `failed(null, it)`, or whichever is shown, `failed(null)`. */
  const failed = (problem, was) => {
    if (!problem) return fail((shown) => (was === undefined || was === shown ? null : shown))
    if (problem instanceof ApiError && problem.status === 401) ask(true)
    else if (problem.name !== "AbortError") fail(problem)
  }
  const view = { stream: StreamView, server: ServerView, subscriptions: Subscriptions }[place.view] ?? StreamList
  const current = (name) => (place.view === name ? "page" : undefined)
  return html`
    <header>
      <a class="brand" href="#/"><img src="page/icon.svg" alt="" width="22" height="22" />Durable Streams</a>
      <nav aria-label="Views">
        <a href="#/" aria-current=${current("") ?? current("stream")}>Streams</a>
        <a href="#/subscriptions" aria-current=${current("subscriptions")}>Subscriptions</a>
        <a href="#/server" aria-current=${current("server")}>Server</a>
      </nav>
      ${key.get() &&
      html`<button class="quiet" onClick=${() => { key.forget(); location.reload() }}>Forget the key</button>`}
    </header>
    ${error && html`<p class="error" role="alert">${error.message}</p>`}
    ${asks
      ? html`<${KeyForm} />`
      : html`<main><${view} key=${place.view + place.path} path=${place.path} failed=${failed} /></main>`}
  `
}

function KeyForm() {
  const [value, type] = useState("")
  const use = (event) => {
    event.preventDefault()
    key.set(value.trim())
    location.reload()
  }
  return html`<main>
    <form class="card key" onSubmit=${use}>
      <h1>${key.get() ? "This key does not open it" : "This server wants a key"}</h1>
      <p>The page sees what the key may see. It is kept in this tab only, until the tab is closed.</p>
      <label>Key or token <input type="password" autocomplete="off" autofocus value=${value}
        pattern="\\s*[!-~]+\\s*" title="A key or token has no blanks, and none but ASCII characters."
        onInput=${(event) => type(event.target.value)} /></label>
      <button class="main" disabled=${!value.trim()}>Use it</button>
    </form>
  </main>`
}

render(html`<${App} />`, document.getElementById("app"))
