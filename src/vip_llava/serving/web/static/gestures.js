// Turns pointer and keyboard input on the stage into changes of the model and the view.
// Mouse, pen, touch and the keyboard's pointer share three steps: press, drag, release.

import { selfIntersects, resizeHandles, translate, regionFromDrag, simplify, clampToImage, regionsAt } from "./geometry.js";
import { eventPosition } from "./view.js";

const CLICK_DISTANCE = 4; // CSS pixels; a shorter drag is a click
const OUTLINE_SHAPES = ["contour", "mask"];

export class Gestures {
  /** `host`: {canvas, model, view, tool(), setTool, redraw, outline(points), suggest(at), setStatus(text)}. */
  constructor(host) {
    this.host = host;
    this.draft = null; // the region being drawn or changed
    this.corners = []; // of an outline drawn by clicks, in image pixels
    this.cursor = null; // the keyboard's pointer on the stage
    this.gesture = null;
    this.touches = new Map();
    const { canvas } = host;
    const on = (name, listener) => canvas.addEventListener(name, listener);
    on("pointerdown", (event) => this.down(event));
    on("pointermove", (event) => this.move(event));
    on("pointerup", (event) => this.up(event));
    on("pointercancel", (event) => this.pointerCancelled(event));
    on("dblclick", () => this.close());
    on("wheel", (event) => this.wheel(event));
    on("keydown", (event) => this.key(event));
    on("blur", () => { this.cursor = null; host.redraw(); });
    on("contextmenu", (event) => event.preventDefault());
  }

  /** The position of an event on the stage. */
  position(event) {
    return eventPosition(event, this.host.canvas, this.host.view.stage);
  }

  at(stage) {
    return clampToImage(this.host.view.toImage(stage), this.host.model.size);
  }

  down(event) {
    if (!this.host.ready()) return;
    const { canvas } = this.host;
    const stage = this.position(event);
    canvas.focus({ preventScroll: true });
    this.cursor = null;
    canvas.setPointerCapture(event.pointerId);
    if (event.pointerType === "touch") {
      this.touches.set(event.pointerId, stage);
      if (this.touches.size > 1) return this.startPinch();
    }
    const panning = event.button === 1 || event.button === 2 || this.host.tool() === "pan";
    this.press(stage, { panning, tolerance: event.pointerType === "touch" ? 22 : 9 });
  }

  move(event) {
    const stage = this.position(event);
    if (this.touches.has(event.pointerId)) {
      this.touches.set(event.pointerId, stage);
      if (this.pinch) return this.movePinch();
    }
    const events = event.getCoalescedEvents?.() ?? [];
    for (const each of events.length ? events : [event]) this.drag(this.position(each));
  }

  up(event) {
    this.touches.delete(event.pointerId);
    if (this.pinch) {
      if (!this.touches.size) this.pinch = null;
      return;
    }
    this.release(this.position(event));
  }

  pointerCancelled(event) {
    this.touches.delete(event.pointerId);
    this.cancel();
  }

  // Press, drag, release: positions are on the stage.

  press(stage, { panning = false, tolerance = 9 } = {}) {
    const { model, view } = this.host;
    const tool = this.host.tool();
    const at = this.at(stage);
    const imageTolerance = tolerance / view.scale;
    this.gesture = { from: stage, last: stage, start: at, path: [at], travel: 0, kind: panning ? "pan" : tool };
    if (panning) return;
    if (tool === "select") this.grab(stage, at, tolerance, imageTolerance);
    if (tool === "point") this.draft = { ...this.style("point"), point: at };
    this.host.redraw();
  }

  grab(stage, at, tolerance, imageTolerance) {
    const { model, view } = this.host;
    const near = (handle) => {
      const [x, y] = view.toStage(handle.at);
      return Math.hypot(x - stage[0], y - stage[1]);
    };
    const handles = model.selected ? resizeHandles(model.selected) : [];
    const [handle] = handles.filter((each) => near(each) <= tolerance).sort((a, b) => near(a) - near(b));
    if (handle) return Object.assign(this.gesture, { kind: "resize", handle, original: model.selected });
    const found = regionsAt(model.regions, at, imageTolerance);
    const again = found.findIndex((each) => each.id === model.selected?.id);
    // The selected region can be moved even below a smaller one; a click selects the next one.
    this.gesture.next = again >= 0 ? found[(again + 1) % found.length] : found[0];
    const original = again >= 0 ? found[again] : found[0];
    if (original && again < 0) model.select(original.id);
    Object.assign(this.gesture, { kind: original ? "move" : "none", original });
  }

  style(shape) {
    return { ...this.host.model.styleFor(shape), shape, frame: "pixel" };
  }

  drag(stage) {
    const { gesture } = this;
    if (!gesture) {
      this.hover = this.at(stage);
      if (this.corners.length) this.host.redraw();
      return;
    }
    const { model, view } = this.host;
    const at = this.at(stage);
    gesture.travel = Math.max(gesture.travel, Math.hypot(stage[0] - gesture.from[0], stage[1] - gesture.from[1]));
    if (gesture.kind === "pan") view.pan(stage[0] - gesture.last[0], stage[1] - gesture.last[1]);
    else if (gesture.kind === "resize") this.draft = gesture.handle.drag(gesture.original, at);
    else if (gesture.kind === "move" && gesture.travel >= CLICK_DISTANCE) {
      this.draft = translate(gesture.original, ...[0, 1].map((i) => (stage[i] - gesture.from[i]) / view.scale), model.size);
    } else if (gesture.kind === "point") this.draft = { ...this.draft, point: at };
    else if (gesture.kind === "scribble" || OUTLINE_SHAPES.includes(gesture.kind)) {
      const [x, y] = gesture.path.at(-1);
      if (x !== at[0] || y !== at[1]) gesture.path.push(at);
      this.draft = { ...this.style("scribble"), points: gesture.path };
    } else if (gesture.kind === "suggest") this.draft = regionFromDrag("box", gesture.start, at, { color: "#ffffff", width: 1 });
    else if (gesture.kind !== "none" && gesture.kind !== "select") this.draft = regionFromDrag(gesture.kind, gesture.start, at, this.style(gesture.kind));
    gesture.last = stage;
    this.host.redraw();
  }

  release(stage) {
    const { gesture } = this;
    if (!gesture) return;
    this.drag(stage);
    const { model, view } = this.host;
    const draft = this.draft;
    this.gesture = this.draft = null;
    const click = gesture.travel < CLICK_DISTANCE;
    if (gesture.kind === "resize" && draft) model.replace(draft);
    else if (gesture.kind === "move" && draft) model.replace(draft);
    else if (gesture.kind === "move" && click) model.select(gesture.next.id);
    else if (gesture.kind === "none") model.select(null);
    else if (gesture.kind === "point") model.add(draft);
    else if (gesture.kind === "suggest") this.host.suggest(click ? { point: gesture.start } : { box: draft?.box });
    else if (OUTLINE_SHAPES.includes(gesture.kind)) this.outlined(gesture, click);
    else if (gesture.kind === "pan") { /* panned while dragging */ }
    else if (click) model.select(regionsAt(model.regions, gesture.start, 9 / view.scale)[0]?.id ?? null);
    else if (gesture.kind === "scribble") {
      model.add({ ...this.style("scribble"), points: simplify(gesture.path, 0.4 / view.scale) });
    } else model.add(draft);
    this.host.redraw();
  }

  /** A contour or mask: one freehand drag, or corners by clicks until the first one is clicked. */
  outlined(gesture, click) {
    if (!click && !this.corners.length) return this.finish(gesture.kind, simplify(gesture.path, 0.6 / this.host.view.scale));
    const [first] = this.corners;
    const { view } = this.host;
    const close = first && this.corners.length > 2
      && Math.hypot(first[0] - gesture.start[0], first[1] - gesture.start[1]) * view.scale <= 10;
    if (close) return this.close();
    this.corners.push(...(click ? [gesture.start] : simplify(gesture.path, 0.6 / view.scale)));
    return this.host.setStatus("Click the corners; the first corner, Enter or a double click closes the outline.");
  }

  close() {
    const corners = this.corners.filter((each, i, all) => !i || each[0] !== all[i - 1][0] || each[1] !== all[i - 1][1]);
    this.corners = [];
    if (corners.length) this.finish(this.host.tool(), corners);
    this.host.redraw();
  }

  async finish(shape, ring) {
    const { model } = this.host;
    if (!OUTLINE_SHAPES.includes(shape)) return;
    if (ring.length < 3) return this.host.setStatus("An outline needs at least three corners.");
    let polygons = [ring.flat()];
    if (selfIntersects(ring)) polygons = await this.host.outline(ring);
    if (polygons) model.add({ ...this.style(shape), polygons });
  }

  cancel() {
    this.gesture = this.draft = this.pinch = null;
    this.corners = [];
    this.host.redraw();
  }

  // Zoom: wheel with Ctrl (also sent by a touch pad's pinch), and two touches.

  wheel(event) {
    if (!this.host.ready()) return;
    const { view } = this.host;
    if (event.ctrlKey || event.metaKey) view.zoom(view.scale * Math.exp(-event.deltaY / 300), this.position(event));
    else if (event.shiftKey) view.pan(-(event.deltaX || event.deltaY), 0);
    else return; // the page scrolls
    event.preventDefault();
    this.host.redraw();
  }

  startPinch() {
    this.gesture = this.draft = null;
    const [a, b] = [...this.touches.values()];
    this.pinch = { apart: Math.hypot(a[0] - b[0], a[1] - b[1]), scale: this.host.view.scale, at: middle(a, b) };
    this.host.redraw();
  }

  movePinch() {
    const [a, b] = [...this.touches.values()];
    if (!b) return;
    const { view } = this.host;
    const at = middle(a, b);
    view.pan(at[0] - this.pinch.at[0], at[1] - this.pinch.at[1]);
    view.zoom((this.pinch.scale * Math.hypot(a[0] - b[0], a[1] - b[1])) / Math.max(this.pinch.apart, 1), at);
    this.pinch.at = at;
    this.host.redraw();
  }

  // Keyboard. An unknown key is left to the page.

  key(event) {
    if (!this.host.ready() || this.host.shortcut(event)) return;
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (step) this.arrow(step.map((each) => each * (event.shiftKey ? 10 : 1)), event.altKey);
    else if (event.key === "Enter" && this.corners.length && !this.cursor) this.close();
    else if (event.key === "Enter" || event.key === " ") this.toggle();
    else if (event.key === "Escape") this.escape();
    else return;
    event.preventDefault();
  }

  /** Arrow keys move the selected region (with Alt: its lower right handle), or the keyboard's pointer. */
  arrow([dx, dy], resize) {
    const { model, view } = this.host;
    const region = model.selected;
    if (this.host.tool() === "select" && region) {
      if (!resize) return model.replace(translate(region, dx, dy, model.size));
      const handles = resizeHandles(region);
      const handle = handles.length === 8 ? handles[4] : handles.at(-1);
      return model.replace(handle.drag(region, clampToImage([handle.at[0] + dx, handle.at[1] + dy], model.size)));
    }
    const from = this.cursor ?? view.toStage(model.size.map((each) => each / 2));
    const by = Math.max(1, view.scale);
    const to = [from[0] + dx * by, from[1] + dy * by];
    this.cursor = to.map((each, axis) => Math.min(Math.max(each, 0), view.stage[axis] - 1));
    this.drag(this.cursor);
    this.host.redraw();
  }

  /** Space or Enter presses the keyboard's pointer, and releases it the second time. */
  toggle() {
    const { model, view } = this.host;
    this.cursor ??= view.toStage(model.size.map((each) => each / 2));
    if (this.gesture) this.release(this.cursor);
    else this.press(this.cursor);
  }

  escape() {
    if (this.gesture || this.corners.length) this.cancel();
    else this.host.model.select(null);
  }
}

const middle = (a, b) => [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2];
