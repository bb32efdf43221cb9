// What HTML cannot do by itself: copy, stay up to date, filter a list, ask before what cannot be undone.
// Every page works without it. Nothing here knows a page; elements say what they want by data-* attributes.
"use strict";

// [data-live="URL"]: the server sends pieces of the page; each replaces the element of its id.
// A browser has six connections for one address: a page that nobody sees gives its own back after a while.
// [data-live-list]: what came meanwhile is only in the page itself, so it is loaded anew.
const HIDDEN_MS = 30000;
const AWAY_MS = 5000;
for (const root of document.querySelectorAll("[data-live]")) {
  const said = document.querySelector("[data-live-state]");
  const say = (text, stale = false) => {
    if (said) said.textContent = text;
    document.querySelector("main").classList.toggle("stale", stale);
  };
  let source = null;
  let over = false;
  let timer = 0;
  const close = () => { source?.close(); source = null; };
  const open = () => {
    source = new EventSource(root.dataset.live);
    source.addEventListener("open", () => say("live"));
    source.addEventListener("error", () => {
      if (source?.readyState !== EventSource.CLOSED) return say("reconnecting …", true);
      // The browser gives up at any answer but a stream: from a proxy while the service restarts, or 401 since
      // the session ended with it. A page of old numbers must not pass for a live one.
      close();
      say("disconnected", true);
      setTimeout(again, AWAY_MS);
    });
    source.addEventListener("replace", replace);
    source.addEventListener("prepend", prepend);
    source.addEventListener("end", () => { over = true; close(); say(""); });
  };
  const again = async () => {
    const busy = document.activeElement?.matches("input, select, textarea") || root.dataset.paused === "yes";
    const there = await fetch(location.href, { method: "HEAD" }).then((answer) => answer.ok, () => false);
    if (there && !busy) location.reload();
    else setTimeout(again, AWAY_MS);
  };
  const replace = (message) => {
    const { id, html } = JSON.parse(message.data);
    const element = document.getElementById(id);
    // What a person is reading with a selection or typing into stays as it is.
    if (!element || element.contains(document.activeElement)) return;
    element.innerHTML = html;
    tell(element);
  };
  const prepend = (message) => {
    const { id, html, keep } = JSON.parse(message.data);
    const element = document.getElementById(id);
    if (!element || root.dataset.paused === "yes") return;
    element.insertAdjacentHTML("afterbegin", html);
    element.firstElementChild?.classList.add("fresh");
    while (keep && element.children.length > keep) element.lastElementChild.remove();
    tell(element);
  };
  const look = () => {
    clearTimeout(timer);
    if (document.hidden) {
      timer = setTimeout(() => { close(); say(""); }, HIDDEN_MS);
    } else if (!source && !over) {
      if (root.hasAttribute("data-live-list") && root.dataset.paused !== "yes") location.reload();
      else open();
    }
  };
  open();
  look();
  document.addEventListener("visibilitychange", look);
  addEventListener("pagehide", close);
  // Back from the browser's cache of pages, where no connection lives.
  addEventListener("pageshow", (event) => { if (event.persisted) look(); });
}

// [data-copy="ID"]: copies the text of that element.
document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const element = document.getElementById(button.dataset.copy);
  const text = element.dataset.plain ?? element.textContent;
  try {
    await navigator.clipboard.writeText(text.trim());
  } catch {
    // Browsers give the clipboard to secure pages only; selecting works everywhere.
    const range = document.createRange();
    range.selectNodeContents(element);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    document.execCommand("copy");
  }
  const before = button.textContent;
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = before; }, 1400);
});

// input[data-filter="SELECTOR"]: hides the elements whose text lacks what is typed.
for (const input of document.querySelectorAll("[data-filter]")) {
  input.addEventListener("input", () => {
    const wanted = input.value.trim().toLowerCase();
    for (const element of document.querySelectorAll(input.dataset.filter)) {
      const text = element.dataset.text ?? element.textContent;
      element.hidden = !text.toLowerCase().includes(wanted);
    }
  });
}

// form[data-confirm="QUESTION"]: asks first.
document.addEventListener("submit", (event) => {
  const question = event.target.dataset.confirm;
  if (question && !confirm(question)) event.preventDefault();
});

// select[data-go]: goes to the address that is its value.
document.addEventListener("change", (event) => {
  if (event.target.matches("select[data-go]")) location.assign(event.target.value);
});

// input[data-find]: "/" goes there, unless one types elsewhere.
document.addEventListener("keydown", (event) => {
  const find = document.querySelector("[data-find]");
  if (event.key !== "/" || !find || event.target.closest("input, select, textarea")) return;
  event.preventDefault();
  find.focus();
});

// button[data-pause]: holds what is added by itself.
document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-pause]");
  if (!button) return;
  const root = button.closest("[data-live]") ?? document.querySelector("[data-live]");
  const paused = root.dataset.paused !== "yes";
  root.dataset.paused = paused ? "yes" : "no";
  button.textContent = paused ? "Resume" : "Pause";
  button.setAttribute("aria-pressed", String(paused));
});

// Light, dark, or as the system has it; `theme.js` has applied what was chosen before.
document.querySelector("[data-theme-button]")?.addEventListener("click", () => {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = document.documentElement.dataset.theme ?? (dark ? "dark" : "light");
  const next = now === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  try { localStorage.setItem("theme", next); } catch { /* The browser stores nothing: it holds for this page. */ }
});

// <time datetime="...">: the reader's own time zone on hover.
function tell(root) {
  for (const time of root.querySelectorAll("time[datetime]:not([title])")) {
    time.title = new Date(time.dateTime).toLocaleString([], { timeZoneName: "short" });
  }
}
tell(document);

// The section that one is in, where the navigation is wider than the screen.
document.querySelector(".nav [aria-current]")?.scrollIntoView({ inline: "center", block: "nearest" });
