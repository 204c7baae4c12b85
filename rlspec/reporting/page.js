"use strict";
// Everything is there without this script; it adds a legend that shows single lines, copying, and the reload.
const stored = (name, value) => {
  try { // a page opened as a file may have no storage
    if (value === undefined) return sessionStorage.getItem(name);
    sessionStorage.setItem(name, value);
  } catch { /* then nothing is kept */ }
  return null;
};

const root = document.documentElement;
if (stored("theme")) root.dataset.theme = stored("theme");
document.getElementById("theme").addEventListener("click", () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  stored("theme", root.dataset.theme);
});

for (const group of document.querySelectorAll(".group")) {
  const keys = [...group.querySelectorAll(".key")];
  const light = (shown) => {
    group.classList.toggle("lit", shown.size > 0);
    for (const part of group.querySelectorAll("[data-series].line, [data-series].band"))
      part.classList.toggle("shown", shown.has(part.dataset.series));
  };
  const pressed = () => new Set(keys.filter((key) => key.ariaPressed === "true").map((key) => key.dataset.series));
  for (const key of keys) {
    key.addEventListener("click", () => {
      key.ariaPressed = String(key.ariaPressed !== "true");
      light(pressed());
    });
    key.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && light(pressed().add(key.dataset.series)));
    key.addEventListener("pointerleave", () => light(pressed()));
  }
}

for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", async () => {
    const text = button.previousElementSibling;
    try {
      await navigator.clipboard.writeText(text.textContent);
      button.textContent = "Copied";
    } catch { // no clipboard: the text is selected instead
      getSelection().selectAllChildren(text);
      button.textContent = "Selected";
    }
  });
}

const folded = [...document.querySelectorAll("details")];
addEventListener("beforeprint", () => folded.forEach((each) => {
  each.dataset.closed = String(!each.open);
  each.open = !each.matches(".numbers");
}));
addEventListener("afterprint", () => folded.forEach((each) => { each.open = each.dataset.closed !== "true"; }));

// A link to something inside of what is folded opens it.
const unfold = () => {
  let place = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (; place; place = place.parentElement) if (place.matches("details")) place.open = true;
};
addEventListener("hashchange", unfold);
unfold();

const seconds = Number(document.body.dataset.reload);
if (seconds) {
  const state = JSON.parse(stored("folded") || "[]");
  if (state.length === folded.length) folded.forEach((each, place) => { each.open = state[place]; });
  scrollTo(0, Number(stored("scrolled") || 0));
  setInterval(() => {
    const busy = [...document.querySelectorAll("video")].some((film) => !film.paused);
    if (document.hidden || busy) return;
    stored("folded", JSON.stringify(folded.map((each) => each.open)));
    stored("scrolled", String(scrollY));
    location.reload();
  }, 1000 * seconds);
}
