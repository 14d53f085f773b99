// The worklist: fetches itself anew, filters by text on this computer only, and obeys the keyboard.

const EVERY_MS = 4000;
const rows = document.getElementById("rows");
const filter = document.getElementById("filter");
const lost = document.getElementById("lost");
const live = document.getElementById("live");

let selected = "";
let shown = "";

function visible() {
  return [...rows.querySelectorAll("tbody tr[data-uid]")].filter((row) => !row.hidden);
}

// Without accents and case, so that "nguyen" finds "Nguyễn"; đ has no decomposition.
function plain(text) {
  return text.normalize("NFD").replace(/\p{M}/gu, "").replace(/[đĐ]/g, "d").toLowerCase();
}

function show() {
  const wanted = plain(filter.value.trim());
  for (const row of rows.querySelectorAll("tbody tr[data-uid]")) {
    row.hidden = wanted !== "" && !plain(row.textContent).includes(wanted);
    row.classList.toggle("selected", row.dataset.uid === selected);
  }
}

function select(row) {
  selected = row ? row.dataset.uid : "";
  show();
  row?.scrollIntoView({ block: "nearest" });
}

function step(by) {
  const list = visible();
  const at = list.findIndex((row) => row.dataset.uid === selected);
  const next = at < 0 ? 0 : Math.min(list.length - 1, Math.max(0, at + by));
  if (list.length) select(list[next]);
}

async function refresh() {
  try {
    const response = await fetch(rows.dataset.source, {
      headers: { "X-Requested-With": "fetch" },
      signal: AbortSignal.timeout(EVERY_MS * 2),
    });
    if (response.status === 401) {
      location.assign("/login");
      return;
    }
    if (!response.ok) throw new Error(String(response.status));
    const html = await response.text();
    if (html !== shown) {
      const focused = document.activeElement?.closest("#rows tr")?.dataset.uid;
      rows.innerHTML = html;
      shown = html;
      show();
      if (focused) rows.querySelector(`tr[data-uid="${CSS.escape(focused)}"] .open`)?.focus();
    }
    lost.hidden = true;
    live.classList.remove("lost");
  } catch {
    lost.hidden = false;
    live.classList.add("lost");
  }
}

async function refreshForEver() {
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
    if (!document.hidden) await refresh();
  }
}

document.addEventListener("visibilitychange", () => document.hidden || refresh());

rows.addEventListener("click", (event) => {
  const row = event.target.closest("tr[data-uid]");
  if (row && !event.target.closest("a")) row.querySelector(".open").click();
});

filter.addEventListener("input", show);

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target === filter) {
    if (event.key === "Escape") {
      filter.value = "";
      filter.blur();
      show();
    } else if (event.key === "Enter" || event.key === "ArrowDown") {
      filter.blur();
      step(1);
    }
    return;
  }
  if (event.target.closest("a, button, input") && event.key === "Enter") return;
  const actions = {
    j: () => step(1),
    ArrowDown: () => step(1),
    k: () => step(-1),
    ArrowUp: () => step(-1),
    "/": () => filter.focus(),
    Enter: () => rows.querySelector("tr.selected .open")?.click(),
  };
  if (actions[event.key]) {
    event.preventDefault();
    actions[event.key]();
  }
});

refreshForEver();
