// The page of one study: the list of marks, the keys of the review, and the viewer beside them.
// The list in the page, as the server rendered it, is the only truth; the viewer draws it.

import { Viewer } from "./viewer.js";

const STATUS_EVERY_MS = 5000;
const root = document.getElementById("viewer");
const review = document.getElementById("review");
const status = document.getElementById("status");
const failure = document.getElementById("failure");
const uid = root.dataset.uid;
const home = `/studies/${uid}`;

const texts = {};
for (const [key, value] of Object.entries(root.dataset)) {
  if (key.startsWith("text")) texts[key.slice(4, 5).toLowerCase() + key.slice(5)] = value;
}

let viewer = null;
let selected = "";
let busy = false;

// --- marks ---

function marks() {
  return [...review.querySelectorAll(".mark")];
}

function chosen() {
  return marks().find((mark) => mark.dataset.trackingUid === selected) ?? null;
}

function placeOf(mark) {
  return mark.dataset.center.split(",").map(Number);
}

function refreshMarks() {
  for (const mark of marks()) mark.classList.toggle("selected", mark === chosen());
  if (!viewer?.stack) return;
  for (const mark of marks()) {
    const index = Math.round(viewer.toIndex(placeOf(mark))[0]);
    mark.querySelector(".slice").textContent = `${texts.slice} ${index + 1}`;
  }
  viewer.setMarks(
    marks().map((mark) => ({
      uid: mark.dataset.trackingUid,
      label: mark.dataset.label,
      verdict: mark.dataset.verdict,
      center: placeOf(mark),
      diameter: Number(mark.dataset.diameter),
    })),
    selected,
  );
}

function select(mark) {
  if (!mark) return;
  selected = mark.dataset.trackingUid;
  refreshMarks();
  mark.scrollIntoView({ block: "nearest" });
  if (viewer?.stack) viewer.goTo(placeOf(mark));
}

function step(by) {
  const list = marks();
  if (list.length) select(list[(list.indexOf(chosen()) + by + list.length) % list.length]);
}

function nextUndecided() {
  const list = marks();
  const from = list.indexOf(chosen());
  const order = [...list.slice(from + 1), ...list.slice(0, from + 1)];
  return order.find((mark) => mark.dataset.verdict === "none");
}

// --- judging ---

function complain(text) {
  failure.textContent = `${texts.notSaved}: ${text}`;
  failure.hidden = false;
  setTimeout(() => (failure.hidden = true), 8000);
}

// One judgement at a time: a key pressed while one is being saved does nothing, because the mark
// that it was meant for may no longer be the selected one.
async function post(path, fields) {
  if (busy) return null;
  setBusy(true);
  try {
    const response = await fetch(`${home}/${path}`, {
      method: "POST",
      headers: { "X-Requested-With": "fetch" },
      body: new URLSearchParams({ csrf: root.dataset.csrf, ...fields }),
    });
    if (response.status === 401) {
      location.assign(`/login?after=${home}`);
      return null;
    }
    if (!response.ok) {
      complain((await response.json()).error);
      return null;
    }
    failure.hidden = true;
    review.innerHTML = await response.text();
    return response.headers.get("X-Phoi-Selected");
  } catch {
    complain(document.getElementById("lost").textContent);
    return null;
  } finally {
    setBusy(false);
  }
}

function setBusy(now) {
  busy = now;
  document.body.classList.toggle("saving", now);
}

async function judge(fields) {
  const tracking = selected;
  if (await post("decisions", { tracking_uid: tracking, ...fields })) {
    const next = nextUndecided();
    if (next) select(next);
    else refreshMarks();
  }
}

async function undo() {
  const back = await post("undo", {});
  if (!back) return;
  selected = back;
  if (chosen()) select(chosen());
  else refreshMarks();
}

// --- dialogs: each resolves to its form's fields, or null ---

function ask(id, values = {}) {
  const dialog = document.getElementById(id);
  const form = dialog.querySelector("form");
  form.reset();
  for (const [name, value] of Object.entries(values)) {
    const field = form.elements.namedItem(name);
    if (field) field.value = value;
    const place = form.querySelector(`[data-fill="${name}"]`);
    if (place) place.textContent = value;
  }
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    form.onsubmit = (event) => {
      event.preventDefault();
      const fields = Object.fromEntries(new FormData(form, event.submitter));
      for (const name of Object.keys(fields)) if (fields[name] === "") delete fields[name];
      dialog.onclose = null;
      dialog.close();
      resolve(fields);
    };
    // The close event of the last time may come after the dialog was opened again.
    dialog.onclose = () => dialog.open || resolve(null);
  });
}

async function modify() {
  const mark = chosen();
  const fields = await ask("modify-dialog", { label: mark.dataset.label, mean_diameter_mm: mark.dataset.diameter });
  if (fields) await judge({ verdict: "modified", ...fields });
}

async function reject() {
  const fields = await ask("reject-dialog", { label: chosen().dataset.label });
  if (fields) await judge({ verdict: "rejected", ...fields });
}

async function addMissed({ place, diameter }) {
  setPlacing(false);
  const fields = await ask("missed-dialog", diameter ? { mean_diameter_mm: diameter.toFixed(1) } : {});
  if (!fields) return;
  const [slice, row, column] = place;
  const added = await post("missed", {
    revision: root.dataset.revision,
    slice_index: slice,
    row,
    column,
    ...fields,
  });
  if (!added) return;
  selected = added;
  refreshMarks();
}

document.getElementById("reject-dialog")?.addEventListener("keydown", (event) => {
  const button = event.currentTarget.querySelectorAll(".reasons button")[Number(event.key) - 1];
  const writing = event.target.tagName === "INPUT";
  // Enter in the remark would press the first reason: nobody chose that one.
  if (writing && event.key === "Enter") event.preventDefault();
  if (button && !writing) {
    event.preventDefault();
    button.click();
  }
});

// --- tools and keys ---

function setPlacing(placing) {
  if (!viewer) return;
  viewer.setPlacing(placing);
  document.getElementById("missed-hint").hidden = !placing;
  press("missed", placing);
}

function press(tool, pressed) {
  root.querySelector(`[data-tool="${tool}"]`)?.setAttribute("aria-pressed", String(pressed));
}

function setWindow(name) {
  viewer.setWindow(name);
  press("lung", name === "lung");
  press("mediastinum", name === "mediastinum");
}

const tools = {
  lung: () => setWindow("lung"),
  mediastinum: () => setWindow("mediastinum"),
  "zoom-in": () => viewer.zoomAtCentre(1.25),
  "zoom-out": () => viewer.zoomAtCentre(0.8),
  fit: () => viewer.fit(),
  marks: () => {
    viewer.toggleMarks();
    press("marks", viewer.showMarks);
  },
  missed: () => setPlacing(!viewer.placing),
};

const acts = {
  accept: () => judge({ verdict: "accepted" }),
  modify,
  reject,
  undo,
  sign: () => document.getElementById("sign-dialog").showModal(),
};

// A key does what its button does, and nothing where there is no such button.
function act(name) {
  const scope = ["undo", "sign"].includes(name) ? review : chosen();
  const button = scope?.querySelector(`[data-act="${name}"]`);
  if (button && !button.disabled) acts[name]();
}

const keys = {
  a: () => act("accept"),
  m: () => act("modify"),
  r: () => act("reject"),
  u: () => act("undo"),
  s: () => act("sign"),
  n: () => step(1),
  p: () => step(-1),
};

const viewerKeys = {
  x: () => root.querySelector('[data-tool="missed"]')?.click(),
  Escape: () => setPlacing(false),
  j: () => viewer.goToSlice(viewer.index + 1),
  ArrowDown: () => viewer.goToSlice(viewer.index + 1),
  k: () => viewer.goToSlice(viewer.index - 1),
  ArrowUp: () => viewer.goToSlice(viewer.index - 1),
  PageDown: () => viewer.goToSlice(viewer.index + 10),
  PageUp: () => viewer.goToSlice(viewer.index - 10),
  Home: () => viewer.goToSlice(0),
  End: () => viewer.goToSlice(Infinity),
  1: tools.lung,
  2: tools.mediastinum,
  "+": tools["zoom-in"],
  "=": tools["zoom-in"],
  "-": tools["zoom-out"],
  0: tools.fit,
  h: tools.marks,
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (document.querySelector("dialog[open]")) return;
  // A field of a dialog that was just closed has the focus for a moment longer.
  if (event.target.matches("input, textarea, select") && !event.target.closest("dialog")) return;
  const action = keys[event.key] ?? (viewer && viewerKeys[event.key]);
  if (!action || (event.repeat && keys[event.key])) return;
  event.preventDefault();
  action();
});

root.addEventListener("click", (event) => {
  const tool = event.target.closest("[data-tool]")?.dataset.tool;
  if (tool && viewer) tools[tool]();
});

review.addEventListener("click", (event) => {
  if (event.target.closest("dialog")) return;
  const mark = event.target.closest(".mark");
  if (mark) select(mark);
  const name = event.target.closest("[data-act]")?.dataset.act;
  if (name) act(name);
});

review.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && event.target.matches(".mark")) select(event.target);
});

document.addEventListener("click", (event) => {
  if (event.target.closest("[data-close]")) event.target.closest("dialog").close();
});

// --- keeping up with the server ---

async function refreshStatus() {
  const response = await fetch(`${home}/status`, {
    headers: { "X-Requested-With": "fetch" },
    signal: AbortSignal.timeout(STATUS_EVERY_MS * 2),
  });
  if (response.status === 401) location.assign(`/login?after=${home}`);
  if (!response.ok) throw new Error(String(response.status));
  const html = await response.text();
  if (busy) return;
  status.innerHTML = html;
  const now = status.firstElementChild.dataset.state;
  const seen = review.firstElementChild.dataset.state;
  if (now === seen) return;
  // Nothing can be lost on a page without pictures; elsewhere the reader decides when.
  if (root.dataset.images === "no") location.reload();
  else document.getElementById("changed").hidden = false;
}

async function keepUp() {
  const lost = document.getElementById("lost");
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, STATUS_EVERY_MS));
    if (document.hidden) continue;
    try {
      await refreshStatus();
      lost.hidden = true;
    } catch {
      lost.hidden = false;
    }
  }
}

async function start() {
  selected = marks()[0]?.dataset.trackingUid ?? "";
  refreshMarks();
  keepUp();
  if (root.dataset.images === "no") return;
  const canvas = document.getElementById("canvas");
  viewer = new Viewer(canvas, `${home}/revisions/${root.dataset.revision}`, texts);
  viewer.addEventListener("place", (event) => addMissed(event.detail));
  if (!(await viewer.open())) return;
  refreshMarks();
  if (chosen()) select(chosen());
}

start();
