"use strict";
// One page over the API of this server. What comes from data is set as text, never as HTML.

const FIRST = 24; // results of a new search
const MOST = 200; // the server's cap
const MAX_PICTURE = 10e6;
const OPERATORS = {
  text: { "~": "contains", "=": "is", "!=": "is not" },
  number: { ">=": "≥", "<=": "≤", "=": "=", "!=": "≠" },
  bool: { "=": "is" },
};
const $ = (id) => document.getElementById(id);
const state = { text: "", negative: "", like: null, picture: null, where: [], k: FIRST };
let store = null;
let hits = [];
let running = null; // the search on its way, so that a newer one can end it
let timer = 0;
let opened = null; // the hit shown large

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// The address holds the search, so that Back, a reload and a sent link work; not the picture.
function address() {
  const query = new URLSearchParams();
  if (state.text) query.set("text", state.text);
  if (state.negative) query.set("negative", state.negative);
  if (state.like !== null) query.set("like", state.like);
  for (const condition of state.where) query.append("where", condition);
  return query;
}

function readAddress() {
  const query = new URLSearchParams(location.search);
  state.text = query.get("text") ?? "";
  state.negative = query.get("negative") ?? "";
  state.like = /^\d{1,9}$/.test(query.get("like") ?? "") ? Number(query.get("like")) : null;
  state.where = query.getAll("where");
  dropPicture();
  $("text").value = state.text;
  $("negative").value = state.negative;
}

function remember(push) {
  const query = address().toString();
  const here = query ? `?${query}` : location.pathname;
  if (push && here !== (location.search || location.pathname)) history.pushState(null, "", here);
  else history.replaceState(null, "", here);
}

function search({ push = false, k = FIRST } = {}) {
  clearTimeout(timer);
  state.k = k;
  remember(push);
  showChips();
  return run();
}

async function run() {
  running?.abort();
  const asked = state.text.trim() !== "" || state.like !== null || state.picture !== null;
  $("start").hidden = asked;
  if (!asked) {
    running = null;
    show([], "");
    return;
  }
  const mine = (running = new AbortController());
  const query = address();
  query.set("k", state.k);
  if (state.like !== null) query.set("v", store.id); // rows are those of one state of the stores
  $("results").classList.add("waiting");
  try {
    const answer = await fetch(`api/search?${query}`, {
      signal: mine.signal,
      ...(state.picture && { method: "POST", body: state.picture.file }),
    });
    const body = await answer.json();
    if (mine !== running) return;
    if (!answer.ok) {
      if (answer.status === 409) await readStore();
      throw new Error(body.error);
    }
    if (body.store !== store.id) await readStore();
    const found = body.hits.length;
    show(body.hits, found ? `${found.toLocaleString()} nearest of ${store.rows.toLocaleString()} · ${Math.round(body.took_ms)} ms`
      : "Nothing meets these filters.");
  } catch (error) {
    if (mine !== running || error.name === "AbortError") return;
    show([], error instanceof TypeError ? "The server does not answer. Is it still running?" : error.message, true);
  }
}

function say(text, wrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("wrong", wrong);
}

function show(found, text, wrong = false) {
  const old = hits.length;
  const grows = found.length > old && old > 0 && hits.every((hit, i) => hit.row === found[i].row);
  hits = found;
  $("results").classList.remove("waiting");
  if (grows) $("results").append(...found.slice(old).map((hit, i) => card(hit, old + i)));
  else $("results").replaceChildren(...found.map(card));
  say(text, wrong);
  $("more").hidden = !(found.length === state.k && state.k < Math.min(MOST, store.rows));
}

function picture(hit, size) {
  const image = make("img", { alt: "", loading: size === "small" ? "lazy" : "eager", decoding: "async" });
  setPicture(image, hit, size);
  return image;
}

function setPicture(image, hit, size) {
  image.parentElement?.classList.remove("broken");
  image.onerror = () => image.parentElement?.classList.add("broken");
  image.src = `${hit.picture}&size=${size}`;
}

// A hit's words, and how many more captions its image has.
function wordsOf(hit) {
  return (hit.caption ?? hit.key) + (hit.more ? ` (+${hit.more.toLocaleString()} more)` : "");
}

function card(hit, i) {
  const words = wordsOf(hit);
  const frame = make("span", { className: "frame" }, make("span", { className: "missing", textContent: "no picture" }));
  if (store.fault) frame.classList.add("broken");
  else frame.prepend(picture(hit, "small"));
  const bar = make("meter", { className: "bar", min: 0, max: 1, value: Math.max(0, hit.score) });
  bar.setAttribute("aria-hidden", "true");
  const open = make(
    "button",
    { className: "open", type: "button", title: words, tabIndex: i === 0 ? 0 : -1 },
    frame,
    make("span", { className: "about" },
      make("span", { className: "score" }, bar, hit.score.toFixed(3)),
      make("span", { className: "caption", textContent: words }),
      make("span", { className: "origin", textContent: hit.origin, title: hit.origin })),
  );
  open.onclick = () => openDetail(hit);
  const like = make("button", { className: "like", type: "button", textContent: "More like this", tabIndex: -1 });
  like.setAttribute("aria-label", `More like ${words}`);
  like.onclick = () => moreLike(hit);
  return make("li", {}, open, like);
}

function moreLike(hit) {
  $("detail").close();
  state.text = $("text").value = "";
  state.like = hit.row;
  dropPicture();
  scrollTo(0, 0);
  search({ push: true });
}

function openDetail(hit) {
  opened = hit;
  $("detail-caption").textContent = wordsOf(hit);
  const frame = $("detail-image").parentElement;
  if (store.fault) frame.classList.add("broken");
  else setPicture($("detail-image"), hit, "large");
  const where = store.stores.length > 1 ? { store: hit.store } : {};
  const facts = { score: hit.score.toFixed(4), key: hit.key, from: hit.origin, ...where, row: hit.row, ...hit.metadata };
  $("detail-facts").replaceChildren(
    ...Object.entries(facts).flatMap(([name, value]) => [make("dt", { textContent: name }), make("dd", { textContent: value })]),
  );
  $("detail").showModal();
}

function chip(text, image, remove) {
  const gone = make("button", { type: "button", textContent: "×" });
  gone.setAttribute("aria-label", `Remove ${text}`);
  gone.onclick = remove;
  return make("span", { className: "chip" }, ...(image ? [image] : []), make("span", { textContent: text, title: text }), gone);
}

function showChips() {
  const chips = [];
  if (state.picture) {
    const image = make("img", { src: state.picture.url, alt: "" });
    image.onerror = () => image.remove();
    chips.push(chip(state.picture.file.name || "picture", image, () => { dropPicture(); search({ push: true }); }));
  }
  if (state.like !== null) {
    const known = hits.find((hit) => hit.row === state.like);
    const image = make("img", { src: `api/pictures/${state.like}?v=${store.id}`, alt: "" });
    image.onerror = () => image.remove();
    if (known) names.set(known.row, known.caption ?? known.key);
    const name = names.get(state.like) ?? `row ${state.like}`;
    chips.push(chip(`like ${name}`, store.fault ? null : image, () => { state.like = null; search({ push: true }); }));
  }
  if (state.negative) {
    chips.push(chip(`not ${state.negative}`, null, () => { state.negative = $("negative").value = ""; search({ push: true }); }));
  }
  state.where.forEach((condition, i) => {
    chips.push(chip(condition, null, () => { state.where.splice(i, 1); search({ push: true }); }));
  });
  $("chips").replaceChildren(...chips);
}
const names = new Map(); // of rows that were asked for

function usePicture(file) {
  if (file.size > MAX_PICTURE) {
    say(`${file.name} is larger than ${MAX_PICTURE / 1e6} MB.`, true);
    return;
  }
  dropPicture();
  state.picture = { file, url: URL.createObjectURL(file) };
  state.like = null;
  state.text = $("text").value = "";
  search({ push: true });
}

function dropPicture() {
  if (state.picture) URL.revokeObjectURL(state.picture.url);
  state.picture = null;
}

function clearAll() {
  Object.assign(state, { text: "", negative: "", like: null, where: [] });
  $("text").value = $("negative").value = "";
  dropPicture();
  search({ push: true });
}

// The filters are those of the store's columns.
function fillColumns() {
  $("filter").hidden = store.columns.length === 0;
  $("column").replaceChildren(...store.columns.map((column) => make("option", { value: column.name, textContent: column.name })));
  const preferred = store.columns.find((column) => column.name === "caption");
  if (preferred) $("column").value = "caption";
  fillOperators();
}

function fillOperators() {
  const column = store.columns.find((each) => each.name === $("column").value);
  if (!column) return;
  const operators = Object.entries(OPERATORS[column.kind]);
  if (column.values) operators.unshift(operators.splice(1, 1)[0]); // of few values, "is" comes first
  $("operator").replaceChildren(...operators.map(([value, textContent]) => make("option", { value, textContent })));
  const values = column.values ?? (column.kind === "bool" ? ["true", "false"] : []);
  $("values").replaceChildren(...values.map((value) => make("option", { value })));
  $("value").placeholder = column.kind === "number" && column.min !== null ? `${column.min} … ${column.max}` : "value";
  $("value").inputMode = column.kind === "number" ? "decimal" : "text";
}

// A column's name as a condition has it.
function asWritten(name) {
  return /[=!<>~]|^["\s]|\s$|^$/.test(name) ? `"${name.replaceAll('"', '""')}"` : name;
}

function addFilter() {
  const value = $("value").value.trim();
  if (!value) return $("value").focus();
  const condition = asWritten($("column").value) + $("operator").value + value;
  if (!state.where.includes(condition)) state.where.push(condition);
  $("value").value = "";
  search({ push: true });
}

// The arrow keys walk through the grid, whatever its number of columns.
function walk(event) {
  const cards = [...document.querySelectorAll(".open")];
  const here = cards.indexOf(document.activeElement);
  if (here < 0) return;
  if (event.key === "m" && !event.ctrlKey && !event.metaKey) return moreLike(hits[here]);
  const top = cards[0].getBoundingClientRect().top;
  const across = cards.filter((each) => Math.abs(each.getBoundingClientRect().top - top) < 4).length;
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across }[event.key];
  if (step === undefined) return;
  event.preventDefault();
  const next = here + step;
  if (next < 0 && event.key === "ArrowUp") return $("text").focus();
  const target = cards[Math.max(0, Math.min(cards.length - 1, next))];
  cards[here].tabIndex = -1;
  target.tabIndex = 0;
  target.focus();
}

function listen() {
  $("form").onsubmit = (event) => {
    event.preventDefault();
    state.text = $("text").value;
    state.negative = $("negative").value.trim();
    if (document.activeElement === $("value") && $("value").value.trim()) addFilter();
    else search({ push: true });
  };
  $("text").oninput = () => {
    state.text = $("text").value;
    clearTimeout(timer);
    timer = setTimeout(search, 160);
  };
  $("negative").onchange = () => { state.negative = $("negative").value.trim(); search({ push: true }); };
  $("text").onkeydown = (event) => {
    if (event.key === "ArrowDown" && hits.length) {
      event.preventDefault();
      document.querySelector(".open").focus();
    }
  };
  $("results").addEventListener("keydown", walk);
  $("pick").onclick = () => $("file").click();
  $("file").onchange = () => {
    if ($("file").files[0]) usePicture($("file").files[0]);
    $("file").value = "";
  };
  $("more-options").onclick = () => {
    const opens = $("options").hidden;
    $("options").hidden = !opens;
    $("more-options").setAttribute("aria-expanded", String(opens));
  };
  $("column").onchange = fillOperators;
  $("add").onclick = addFilter;
  $("more").onclick = () => search({ k: Math.min(MOST, state.k * 2) });
  $("detail-like").onclick = () => moreLike(opened);
  $("help-button").onclick = () => $("help").showModal();
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  }
  addEventListener("keydown", (event) => {
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (document.querySelector("dialog[open]") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") clearAll(), $("text").focus();
    else if (typing) return;
    else if (event.key === "/") event.preventDefault(), $("text").focus(), $("text").select();
    else if (event.key === "?") $("help").showModal();
  });
  addEventListener("popstate", () => { readAddress(); showChips(); state.k = FIRST; run(); });
  let depth = 0; // of nested elements that a dragged file has entered
  const hasFile = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  addEventListener("dragenter", (event) => { if (hasFile(event)) { depth += 1; $("drop").hidden = false; } });
  addEventListener("dragleave", (event) => { if (hasFile(event) && --depth <= 0) { depth = 0; $("drop").hidden = true; } });
  addEventListener("dragover", (event) => { if (hasFile(event)) event.preventDefault(); });
  addEventListener("drop", (event) => {
    depth = 0;
    $("drop").hidden = true;
    if (!hasFile(event)) return;
    event.preventDefault();
    if (event.dataTransfer.files[0]) usePicture(event.dataTransfer.files[0]);
  });
  addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])][0];
    if (file) { event.preventDefault(); usePicture(file); }
  });
}

// What is searched; it changes when a store is updated.
async function readStore() {
  const answer = await fetch("api/store");
  const facts = await answer.json();
  if (!answer.ok) throw new Error(facts.error);
  store = facts;
  document.title = `${store.name} · clipkit`;
  $("facts").textContent = `${store.rows.toLocaleString()} ${store.searched === "image" ? "pictures" : "texts"} of ${store.name}, by ${store.model}`;
  $("facts").title = $("facts").textContent;
  $("fault").hidden = !store.fault;
  $("fault").textContent = store.fault ?? "";
  $("examples").replaceChildren(...store.examples.map((text) => {
    const button = make("button", { type: "button", textContent: text });
    button.onclick = () => { state.text = $("text").value = text; search({ push: true }); };
    return button;
  }));
  fillColumns();
}

async function begin() {
  readAddress(); // and a token that came with it is left out of the address from here on
  remember(false);
  try {
    await readStore();
  } catch (error) {
    return say(error instanceof TypeError ? "The server does not answer. Is it still running?" : error.message, true);
  }
  listen();
  if (state.where.length || state.negative) $("more-options").click();
  showChips();
  run();
}

begin();
