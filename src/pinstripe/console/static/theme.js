// The theme that was chosen, before the first paint: applied later, the page would flash in the other one.
"use strict";

try {
  const theme = localStorage.getItem("theme");
  if (theme) document.documentElement.dataset.theme = theme;
} catch { /* The browser stores nothing. */ }
