// The SQL box: keys, names that complete the word at the caret, and the statement in the address's fragment,
// which no server sees. Without this file the box works all the same.
"use strict";

const form = document.querySelector("[data-sql]");
const box = form.querySelector("textarea");
const list = form.querySelector("[data-sql-names]");
const about = form.querySelector("[data-sql-about]");
const first = { list: list.innerHTML, about: about.textContent };
const MOST = 60;
let names = null;

if (!box.value && location.hash.startsWith("#sql=")) {
  try { box.value = decodeURIComponent(location.hash.slice(5)); } catch { /* not of ours */ }
}
const remember = () => {
  const hash = box.value ? `#sql=${encodeURIComponent(box.value)}` : "";
  history.replaceState(null, "", location.pathname + hash);
};
if (box.value) remember();

// The word before the caret.
function word() {
  return /[A-Za-z_][A-Za-z0-9_]*$/.exec(box.value.slice(0, box.selectionStart))?.[0] ?? "";
}

// Columns of the tables that the statement names, then tables; what begins with the word comes first.
function fitting(wanted) {
  const said = new Set(box.value.match(/[A-Za-z_][A-Za-z0-9_]*/g) ?? []);
  const found = new Map();
  for (const [table, columns] of Object.entries(names)) {
    if (!said.has(table)) continue;
    for (const column of columns) if (column.includes(wanted)) found.set(column, table);
  }
  for (const table of Object.keys(names)) if (table.includes(wanted)) found.set(table, "");
  found.delete(wanted);
  const rank = (name) => (name.startsWith(wanted) ? 0 : 1);
  return [...found].sort((a, b) => rank(a[0]) - rank(b[0])).slice(0, MOST);
}

function show() {
  const wanted = word().toLowerCase();
  if (!names || wanted.length < 2) {
    if (list.dataset.word) list.innerHTML = first.list;
    list.dataset.word = "";
    about.textContent = first.about;
    return;
  }
  list.dataset.word = wanted;
  const found = fitting(wanted);
  about.textContent = found.length ? `Matches for “${wanted}”:` : `No matches for “${wanted}”.`;
  list.replaceChildren(...found.map(([name, table]) => {
    const item = document.createElement("li");
    const button = document.createElement("button");
    Object.assign(button, { type: "button", className: "link", textContent: name });
    button.dataset.name = name;
    const where = document.createElement("span");
    Object.assign(where, { className: "small faint", textContent: table });
    item.append(button, where);
    return item;
  }));
}

function put(name) {
  const end = box.selectionStart;
  box.setRangeText(name, end - word().length, end, "end");
  box.focus();
  remember();
  show();
}

let loading = false;
async function load() {
  if (names || loading) return;
  loading = true;
  try {
    const answer = await fetch(form.dataset.sql);
    if (answer.ok) names = await answer.json();
  } catch { /* The next focus tries again. */ }
  loading = false;
  show();
}

box.addEventListener("focus", load);
if (document.activeElement === box) load();
box.addEventListener("input", show);
box.addEventListener("change", remember);
list.addEventListener("click", (event) => {
  const button = event.target.closest("[data-name]");
  if (button) return put(button.dataset.name);
  const link = event.target.closest("a");
  // In the box's own list a click writes the name; other ways to open a link are left alone.
  if (link && !event.ctrlKey && !event.metaKey && !event.shiftKey && event.button === 0) {
    event.preventDefault();
    put(link.textContent);
  }
});
box.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    remember();
    form.requestSubmit(form.querySelector("button.first"));
  }
  if (event.key === " " && event.ctrlKey) {
    event.preventDefault();
    list.querySelector("[data-name]")?.click();
  }
});
