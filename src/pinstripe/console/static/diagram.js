// Zoom, panning, and the lines of the box that is pointed at. Links and the keyboard work without this file.
"use strict";

const view = document.querySelector("[data-diagram]");
const svg = view?.querySelector("svg");
if (svg) {
  const width = svg.width.baseVal.value;
  const height = svg.height.baseVal.value;
  const STEP = 1.2;
  let scale = 1;

  // Around a point of the view, so that what is under the pointer stays there.
  function zoom(to, x = view.clientWidth / 2, y = view.clientHeight / 2) {
    const next = Math.min(4, Math.max(0.1, to));
    const left = (view.scrollLeft + x) / scale;
    const top = (view.scrollTop + y) / scale;
    scale = next;
    svg.setAttribute("width", width * scale);
    svg.setAttribute("height", height * scale);
    view.scrollTo(left * scale - x, top * scale - y);
  }
  const whole = () => Math.min(view.clientWidth / width, view.clientHeight / height);
  const fit = () => zoom(Math.min(1, whole()));

  // At first as wide as the view, but never too small to read: rather begin at what it is about.
  zoom(Math.min(1, Math.max(0.75, view.clientWidth / width)));
  const main = svg.querySelector(".box.main");
  if (main) {
    const box = main.getBoundingClientRect();
    const frame = view.getBoundingClientRect();
    view.scrollBy(box.left + box.width / 2 - frame.left - frame.width / 2, box.top - frame.top - 60);
  }

  const buttons = document.querySelector("[data-zoom]");
  buttons.hidden = false;
  const by = (direction) => (direction ? zoom(scale * STEP ** direction) : fit());
  buttons.addEventListener("click", (event) => {
    const button = event.target.closest("[data-by]");
    if (button) by(Number(button.dataset.by));
  });
  view.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const direction = { "+": 1, "=": 1, "-": -1, 0: 0 }[event.key];
    if (direction === undefined) return;
    event.preventDefault();
    by(direction);
  });
  // With Ctrl, which is what a pinch on a touchpad sends: the plain wheel goes on to scroll.
  view.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    const frame = view.getBoundingClientRect();
    const factor = Math.exp(-Math.sign(event.deltaY) * Math.min(Math.abs(event.deltaY), 60) / 300);
    zoom(scale * factor, event.clientX - frame.left, event.clientY - frame.top);
  }, { passive: false });

  // Dragging moves; a click that did not move still follows its link.
  let held = null;
  let moved = false;
  view.addEventListener("pointerdown", (event) => {
    moved = false;
    if (event.pointerType !== "mouse" || event.button !== 0) return;
    held = { x: event.clientX, y: event.clientY, left: view.scrollLeft, top: view.scrollTop };
  });
  addEventListener("pointermove", (event) => {
    if (!held) return;
    const dx = event.clientX - held.x;
    const dy = event.clientY - held.y;
    if (!moved && Math.hypot(dx, dy) < 5) return;
    moved = true;
    view.classList.add("held");
    view.scrollTo(held.left - dx, held.top - dy);
  });
  addEventListener("pointerup", () => {
    view.classList.remove("held");
    held = null;
  });
  view.addEventListener("click", (event) => { if (moved) event.preventDefault(); }, true);
  view.addEventListener("dragstart", (event) => event.preventDefault());

  function point(box) {
    const name = box?.id.slice("box-".length);
    svg.classList.toggle("pointing", Boolean(box));
    for (const link of svg.querySelectorAll(".link")) {
      link.classList.toggle("near", link.dataset.from === name || link.dataset.to === name);
    }
  }
  svg.addEventListener("pointerover", (event) => point(event.target.closest(".box")));
  svg.addEventListener("pointerleave", () => point(null));
  svg.addEventListener("focusin", (event) => point(event.target.closest(".box")));
  svg.addEventListener("focusout", () => point(null));
}
