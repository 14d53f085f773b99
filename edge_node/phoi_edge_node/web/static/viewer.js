// A viewer for one stack of CT slices on a canvas: no library, no build step, any browser.
//
// The server sends slices upright (first slice nearest the head, front up, patient's left on the
// viewer's right) and says which patient direction lies at each edge: the letters drawn here are
// the server's, never assumed. Places are [slice, row, column] of that stack, fractional.

const WINDOWS = {
  lung: { center: -600, width: 1500 },
  mediastinum: { center: 50, width: 400 },
};
const COLOURS = {
  none: "#f0e442",
  accepted: "#2fbf94",
  modified: "#56b4e9",
  rejected: "#8d99a3",
  missed: "#df92bd",
};
const MEMORY_BYTES = 400e6;
const AT_ONCE = 4;
const TRACK_PX = 18;

export class Viewer extends EventTarget {
  constructor(canvas, base, texts) {
    super();
    this.canvas = canvas;
    this.base = base;
    this.texts = texts;
    this.context = canvas.getContext("2d");
    this.picture = document.createElement("canvas");
    this.slices = new Map();
    this.fetching = new Map();
    this.failed = new Set();
    this.marks = [];
    this.outlines = new Map();
    this.index = 0;
    this.zoom = 1;
    this.pan = [0, 0];
    this.window = { ...WINDOWS.lung };
    this.showMarks = true;
    this.placing = false;
    this.drag = null;
    this.pointer = null;
    this.stack = null;
  }

  async open() {
    this.listen();
    new ResizeObserver(() => this.draw()).observe(this.canvas);
    const response = await fetch(`${this.base}/viewer.json`, { headers: { "X-Requested-With": "fetch" } });
    if (!response.ok) {
      this.failure = true;
      this.draw();
      return false;
    }
    this.stack = await response.json();
    const [, rows, columns] = this.stack.shape;
    this.picture.width = columns;
    this.picture.height = rows;
    this.image = new ImageData(columns, rows);
    this.capacity = Math.max(16, Math.floor(MEMORY_BYTES / (rows * columns * 2)));
    for (const nodule of this.stack.nodules) this.outlines.set(nodule.tracking_uid, nodule);
    this.goToSlice(Math.floor(this.stack.shape[0] / 2));
    return true;
  }

  // --- places ---

  toIndex(lps) {
    const offset = lps.map((value, axis) => value - this.stack.origin_lps_mm[axis]);
    return this.stack.lps_to_index.map((row) => row.reduce((sum, w, axis) => sum + w * offset[axis], 0));
  }

  layout() {
    const box = this.canvas.getBoundingClientRect();
    const [, rows, columns] = this.stack.shape;
    const [, rowMm, columnMm] = this.stack.spacing_mm;
    const width = box.width - TRACK_PX;
    const scale = Math.min(width / (columns * columnMm), box.height / (rows * rowMm)) * this.zoom;
    return {
      width,
      height: box.height,
      scale,
      left: width / 2 - (columns * columnMm * scale) / 2 + this.pan[0],
      top: box.height / 2 - (rows * rowMm * scale) / 2 + this.pan[1],
      perRow: rowMm * scale,
      perColumn: columnMm * scale,
    };
  }

  // Indices name voxel centres: the first pixel reaches from -0.5 to 0.5.
  toScreen(place, layout = this.layout()) {
    return [layout.left + (place[2] + 0.5) * layout.perColumn, layout.top + (place[1] + 0.5) * layout.perRow];
  }

  fromScreen(x, y) {
    const layout = this.layout();
    return [this.index, (y - layout.top) / layout.perRow - 0.5, (x - layout.left) / layout.perColumn - 0.5];
  }

  inside(place) {
    return place.every((value, axis) => value >= -0.5 && value <= this.stack.shape[axis] - 0.5);
  }

  // --- what is shown ---

  goToSlice(index) {
    if (!this.stack) return;
    this.index = Math.min(this.stack.shape[0] - 1, Math.max(0, Math.round(index)));
    this.fetchAround();
    this.draw();
    this.dispatchEvent(new Event("slice"));
  }

  goTo(lps) {
    const place = this.toIndex(lps);
    this.goToSlice(place[0]);
    if (this.zoom > 1) {
      const layout = this.layout();
      const [x, y] = this.toScreen(place, layout);
      this.pan = [this.pan[0] + layout.width / 2 - x, this.pan[1] + layout.height / 2 - y];
      this.draw();
    }
  }

  setMarks(marks, selected) {
    this.marks = marks;
    this.selected = selected;
    this.draw();
  }

  setWindow(name) {
    this.window = { ...WINDOWS[name] };
    this.draw();
  }

  toggleMarks() {
    this.showMarks = !this.showMarks;
    this.draw();
  }

  setPlacing(placing) {
    this.placing = placing;
    this.canvas.parentElement.classList.toggle("placing", placing);
    this.draw();
  }

  zoomBy(factor, x, y) {
    if (!this.stack) return;
    const before = this.fromScreen(x, y);
    this.zoom = Math.min(16, Math.max(0.5, this.zoom * factor));
    const [nowX, nowY] = this.toScreen(before);
    this.pan = [this.pan[0] + x - nowX, this.pan[1] + y - nowY];
    this.draw();
  }

  zoomAtCentre(factor) {
    const box = this.canvas.getBoundingClientRect();
    this.zoomBy(factor, (box.width - TRACK_PX) / 2, box.height / 2);
  }

  fit() {
    this.zoom = 1;
    this.pan = [0, 0];
    this.draw();
  }

  // --- slices: the nearest first, a few at once, as many kept as memory allows ---

  fetchAround() {
    const reach = Math.min(this.stack.shape[0], Math.floor(this.capacity / 2));
    for (let away = 0; away < reach && this.fetching.size < AT_ONCE; away += 1) {
      for (const index of away ? [this.index + away, this.index - away] : [this.index]) {
        const wanted = index >= 0 && index < this.stack.shape[0];
        if (wanted && !this.slices.has(index) && !this.fetching.has(index) && !this.failed.has(index)) {
          this.fetchSlice(index);
        }
      }
    }
  }

  async fetchSlice(index) {
    this.fetching.set(index, true);
    try {
      const response = await fetch(`${this.base}/slices/${index}`, { headers: { "X-Requested-With": "fetch" } });
      if (!response.ok) throw new Error(String(response.status));
      const bytes = await response.arrayBuffer();
      if (bytes.byteLength !== this.stack.shape[1] * this.stack.shape[2] * 2) throw new Error("size");
      this.slices.set(index, littleEndian(bytes));
      this.forgetFarthest();
    } catch {
      this.failed.add(index);
    } finally {
      this.fetching.delete(index);
    }
    if (index === this.index) this.draw();
    this.fetchAround();
    if (!this.fetching.size) this.canvas.dataset.loaded = String(this.slices.size);
  }

  forgetFarthest() {
    while (this.slices.size > this.capacity) {
      let farthest = this.index;
      for (const index of this.slices.keys()) {
        if (Math.abs(index - this.index) > Math.abs(farthest - this.index)) farthest = index;
      }
      this.slices.delete(farthest);
    }
  }

  retry() {
    this.failed.clear();
    this.fetchAround();
    this.draw();
  }

  // --- drawing ---

  draw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.paint();
    });
  }

  paint() {
    const ratio = window.devicePixelRatio || 1;
    const box = this.canvas.getBoundingClientRect();
    this.canvas.width = Math.round(box.width * ratio);
    this.canvas.height = Math.round(box.height * ratio);
    const context = this.context;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.fillStyle = "#000";
    context.fillRect(0, 0, box.width, box.height);
    context.font = "13px system-ui, sans-serif";
    if (!this.stack) {
      this.message(this.failure ? this.texts.failed : this.texts.loading, box);
      return;
    }
    const layout = this.layout();
    context.save();
    context.beginPath();
    context.rect(0, 0, layout.width, layout.height);
    context.clip();
    const pixels = this.slices.get(this.index);
    // Never an older slice under a newer number: black until the right one is here.
    if (pixels) this.paintPicture(pixels, layout);
    else this.message(this.failed.has(this.index) ? this.texts.failed : this.texts.loading, box);
    this.canvas.dataset.shown = pixels ? String(this.index) : "";
    if (this.showMarks) for (const mark of this.marks) this.paintMark(mark, layout);
    if (this.drag?.ruler) this.paintRuler(layout);
    context.restore();
    this.paintLetters(layout);
    this.paintFacts(layout);
    this.paintTrack(layout);
  }

  message(text, box) {
    this.context.fillStyle = "#c9d3db";
    this.context.textAlign = "center";
    this.context.fillText(text, box.width / 2, box.height / 2);
  }

  paintPicture(pixels, layout) {
    // Linear window (PS3.3 C.11.2.1.2.1), as a table of all 65536 values.
    const { center, width } = this.window;
    if (this.tableOf !== `${center}/${width}`) {
      this.table = new Uint8ClampedArray(65536);
      for (let value = -32768; value < 32768; value += 1) {
        this.table[value + 32768] = ((value - (center - 0.5)) / (width - 1) + 0.5) * 255;
      }
      this.tableOf = `${center}/${width}`;
    }
    const out = new Uint32Array(this.image.data.buffer);
    for (let i = 0; i < pixels.length; i += 1) {
      out[i] = 0xff000000 | (this.table[pixels[i] + 32768] * 0x010101);
    }
    this.picture.getContext("2d").putImageData(this.image, 0, 0);
    const [, rows, columns] = this.stack.shape;
    this.context.imageSmoothingEnabled = layout.perColumn < 6;
    this.context.imageSmoothingQuality = "high";
    this.context.drawImage(this.picture, layout.left, layout.top, columns * layout.perColumn, rows * layout.perRow);
  }

  paintMark(mark, layout) {
    const context = this.context;
    const place = this.toIndex(mark.center);
    const away = Math.abs(this.index - place[0]) * this.stack.spacing_mm[0];
    const radius = Math.max(mark.diameter || 10, 4) / 2;
    const outline = this.outlines.get(mark.uid);
    const inMask = outline && this.index >= outline.offset[0] && this.index < outline.offset[0] + outline.shape[0];
    if (!inMask && away > Math.max(radius, this.stack.spacing_mm[0] / 2)) return;

    const [x, y] = this.toScreen(place, layout);
    const selected = mark.uid === this.selected;
    context.strokeStyle = COLOURS[mark.verdict];
    context.fillStyle = COLOURS[mark.verdict];
    context.lineWidth = 1.25;
    context.setLineDash(mark.verdict === "rejected" ? [4, 4] : []);
    if (inMask) this.paintOutline(outline, layout);
    // The ring stays clear of the nodule, so that its edge can be seen.
    const ring = (radius * 1.35 + 3) * layout.scale;
    context.lineWidth = selected ? 2 : 1;
    context.globalAlpha = selected ? 0.9 : 0.7;
    context.beginPath();
    context.arc(x, y, ring, 0, 2 * Math.PI);
    context.stroke();
    context.globalAlpha = 1;
    context.setLineDash([]);
    if (selected && outline) {
      context.lineWidth = 1;
      this.paintAxis(outline.long_axis, layout);
      this.paintAxis(outline.short_axis, layout);
    }
    context.font = "600 14px system-ui, sans-serif";
    context.textAlign = "left";
    this.label(mark.label, x + ring * 0.71 + 4, y - ring * 0.71 - 2);
  }

  paintOutline(outline, layout) {
    const [depth0, row0, column0] = outline.offset;
    const [, rows, columns] = outline.shape;
    outline.voxels ??= unpack(outline.bits, outline.shape);
    const plane = (this.index - depth0) * rows * columns;
    const set = (r, c) => r >= 0 && c >= 0 && r < rows && c < columns && outline.voxels[plane + r * columns + c];
    const context = this.context;
    context.beginPath();
    for (let r = 0; r < rows; r += 1) {
      for (let c = 0; c < columns; c += 1) {
        if (!set(r, c)) continue;
        const left = layout.left + (column0 + c) * layout.perColumn;
        const top = layout.top + (row0 + r) * layout.perRow;
        const right = left + layout.perColumn;
        const bottom = top + layout.perRow;
        const edge = (ax, ay, bx, by) => (context.moveTo(ax, ay), context.lineTo(bx, by));
        if (!set(r - 1, c)) edge(left, top, right, top);
        if (!set(r + 1, c)) edge(left, bottom, right, bottom);
        if (!set(r, c - 1)) edge(left, top, left, bottom);
        if (!set(r, c + 1)) edge(right, top, right, bottom);
      }
    }
    context.stroke();
  }

  paintAxis(ends, layout) {
    if (ends.some((end) => Math.abs(end[0] - this.index) > 0.6)) return;
    this.line(this.toScreen(ends[0], layout), this.toScreen(ends[1], layout));
  }

  paintRuler(layout) {
    this.context.strokeStyle = COLOURS.missed;
    this.context.lineWidth = 1.5;
    this.line(this.toScreen(this.drag.from, layout), this.toScreen(this.drag.to, layout));
  }

  line(from, to) {
    this.context.beginPath();
    this.context.moveTo(...from);
    this.context.lineTo(...to);
    this.context.stroke();
  }

  label(text, x, y) {
    const context = this.context;
    const fill = context.fillStyle;
    context.lineWidth = 3;
    context.strokeStyle = "#000";
    context.strokeText(text, x, y);
    context.fillStyle = fill;
    context.fillText(text, x, y);
  }

  paintLetters(layout) {
    const { left, right, top, bottom } = this.stack.labels;
    const middle = layout.height / 2;
    const centre = layout.width / 2;
    for (const [letter, x, y, align] of [
      [left, 10, middle, "left"],
      [right, layout.width - 10, middle, "right"],
      [top, centre, 22, "center"],
      [bottom, centre, layout.height - 24, "center"],
    ]) {
      this.context.textAlign = align;
      this.context.fillStyle = "#ffffff";
      this.context.font = "700 20px system-ui, sans-serif";
      this.label(letter, x, y);
      this.context.font = "12px system-ui, sans-serif";
      this.label(this.texts[letter.toLowerCase()], x, y + 15);
    }
  }

  paintFacts(layout) {
    const context = this.context;
    const { center, width } = this.window;
    const [slices] = this.stack.shape;
    const z = this.centreOfSlice()[2];
    context.font = "12px system-ui, sans-serif";
    context.fillStyle = "#c9d3db";
    context.textAlign = "left";
    this.label(`${this.texts.slice} ${this.index + 1} / ${slices} · z ${z.toFixed(1)} mm`, 10, layout.height - 10);
    this.label(`W ${Math.round(width)} L ${Math.round(center)}`, 10, layout.height - 26);
    const hu = this.houndsfield();
    if (hu !== null) this.label(`${hu} HU`, 10, 20);
    this.paintScale(layout);
  }

  centreOfSlice() {
    const [, rows, columns] = this.stack.shape;
    return this.toLps([this.index, (rows - 1) / 2, (columns - 1) / 2]);
  }

  toLps(place) {
    const matrix = this.stack.index_to_lps;
    return this.stack.origin_lps_mm.map((origin, axis) => origin + matrix[axis].reduce((sum, w, i) => sum + w * place[i], 0));
  }

  houndsfield() {
    const pixels = this.slices.get(this.index);
    if (!pixels || !this.pointer) return null;
    const [, row, column] = this.fromScreen(...this.pointer).map(Math.round);
    const [, rows, columns] = this.stack.shape;
    if (row < 0 || column < 0 || row >= rows || column >= columns) return null;
    return pixels[row * columns + column];
  }

  paintScale(layout) {
    const mm = [100, 50, 20, 10, 5, 2, 1].find((length) => length * layout.scale < layout.width / 3) ?? 1;
    const right = layout.width - 12;
    const y = layout.height - 12;
    this.context.strokeStyle = "#c9d3db";
    this.context.lineWidth = 1.5;
    this.line([right - mm * layout.scale, y], [right, y]);
    this.line([right - mm * layout.scale, y - 4], [right - mm * layout.scale, y + 4]);
    this.line([right, y - 4], [right, y + 4]);
    this.context.textAlign = "right";
    this.label(`${mm} mm`, right, y - 7);
  }

  // The track at the right edge: where in the stack one is, and where the marks are.
  paintTrack(layout) {
    const context = this.context;
    const slices = this.stack.shape[0];
    const at = (index) => 6 + ((layout.height - 12) * (index + 0.5)) / slices;
    context.fillStyle = "#12191f";
    context.fillRect(layout.width, 0, TRACK_PX, layout.height);
    for (const mark of this.marks) {
      context.fillStyle = COLOURS[mark.verdict];
      context.fillRect(layout.width + 4, at(this.toIndex(mark.center)[0]) - 1.5, TRACK_PX - 8, 3);
    }
    context.strokeStyle = "#ffffff";
    context.lineWidth = 1.5;
    context.strokeRect(layout.width + 2, at(this.index) - 3, TRACK_PX - 4, 6);
  }

  // --- mouse, pen and touch ---

  listen() {
    const canvas = this.canvas;
    let turned = 0;
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      if (event.ctrlKey) {
        this.zoomBy(Math.exp(-event.deltaY / 300), event.offsetX, event.offsetY);
        return;
      }
      // A notch of a wheel is one slice; a touchpad's small steps add up to one.
      turned += event.deltaMode === 0 ? event.deltaY / 60 : event.deltaY;
      const steps = Math.abs(event.deltaY) >= 60 ? Math.sign(event.deltaY) : Math.trunc(turned);
      if (steps) {
        turned = 0;
        this.goToSlice(this.index + steps);
      }
    }, { passive: false });
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("pointerdown", (event) => this.press(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    canvas.addEventListener("pointerup", (event) => this.release(event));
    canvas.addEventListener("pointercancel", () => (this.drag = null));
    canvas.addEventListener("pointerleave", () => {
      this.pointer = null;
      this.draw();
    });
  }

  press(event) {
    if (!this.stack) return;
    this.canvas.focus();
    this.canvas.setPointerCapture(event.pointerId);
    const { offsetX: x, offsetY: y } = event;
    if (x > this.layout().width) {
      this.drag = { kind: "track" };
      this.goToTrack(y);
    } else if (this.placing && event.button === 0) {
      const place = this.fromScreen(x, y);
      this.drag = { kind: "place", ruler: true, from: place, to: place };
    } else if (this.failed.has(this.index)) {
      this.retry();
    } else {
      const kind = event.button === 2 ? "window" : event.button === 1 || event.shiftKey ? "pan" : "scroll";
      this.drag = { kind, x, y, index: this.index, pan: this.pan, window: { ...this.window } };
    }
  }

  move(event) {
    const { offsetX: x, offsetY: y } = event;
    this.pointer = [x, y];
    const drag = this.drag;
    if (drag?.kind === "track") this.goToTrack(y);
    if (drag?.kind === "place") drag.to = this.fromScreen(x, y);
    if (drag?.kind === "scroll") this.goToSlice(drag.index + (y - drag.y) / 6);
    if (drag?.kind === "pan") this.pan = [drag.pan[0] + x - drag.x, drag.pan[1] + y - drag.y];
    if (drag?.kind === "window") {
      this.window = {
        width: Math.max(2, drag.window.width + (x - drag.x) * 4),
        center: drag.window.center + (y - drag.y) * 2,
      };
    }
    this.draw();
  }

  release() {
    const drag = this.drag;
    this.drag = null;
    if (drag?.kind !== "place" || !this.inside(drag.from) || !this.inside(drag.to)) return;
    const [, rowMm, columnMm] = this.stack.spacing_mm;
    const length = Math.hypot((drag.to[1] - drag.from[1]) * rowMm, (drag.to[2] - drag.from[2]) * columnMm);
    const drawn = length >= 2;
    const place = drawn ? drag.from.map((value, axis) => (value + drag.to[axis]) / 2) : drag.from;
    this.dispatchEvent(new CustomEvent("place", { detail: { place, diameter: drawn ? length : null } }));
    this.draw();
  }

  goToTrack(y) {
    const { height } = this.layout();
    this.goToSlice(((y - 6) / (height - 12)) * this.stack.shape[0] - 0.5);
  }
}

function littleEndian(bytes) {
  if (new Uint8Array(new Uint16Array([1]).buffer)[0] === 1) return new Int16Array(bytes);
  const view = new DataView(bytes);
  return Int16Array.from({ length: bytes.byteLength / 2 }, (_, i) => view.getInt16(2 * i, true));
}

// Eight voxels to a byte, the first in the highest bit.
function unpack(base64, shape) {
  const packed = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const count = shape[0] * shape[1] * shape[2];
  return Uint8Array.from({ length: count }, (_, i) => (packed[i >> 3] >> (7 - (i & 7))) & 1);
}
