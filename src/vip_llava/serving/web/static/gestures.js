// Pointers and keys on the stage, turned into changes of the model and the view.
// Mouse, pen, touch and the keyboard's own pointer all take the same way: press, drag, release at a place.

import { crosses, handlesOf, moved, pulled, simplified, spot, under } from "./geometry.js";
import { place } from "./view.js";

const CLICK = 4; // CSS pixels; a shorter drag is a click
const FREE = ["contour", "mask"];

export class Gestures {
  /** `host`: {canvas, model, view, tool(), setTool, redraw, outline(points), suggest(at), say(text)}. */
  constructor(host) {
    this.host = host;
    this.draft = null; // the region being drawn or changed
    this.corners = []; // of an outline made by clicks, in pixels of the image
    this.cursor = null; // the keyboard's pointer on the stage
    this.act = null;
    this.fingers = new Map();
    const { canvas } = host;
    const on = (name, act) => canvas.addEventListener(name, act);
    on("pointerdown", (event) => this.down(event));
    on("pointermove", (event) => this.move(event));
    on("pointerup", (event) => this.up(event));
    on("pointercancel", (event) => this.drop(event));
    on("dblclick", () => this.close());
    on("wheel", (event) => this.wheel(event));
    on("keydown", (event) => this.key(event));
    on("blur", () => { this.cursor = null; host.redraw(); });
    on("contextmenu", (event) => event.preventDefault());
  }

  /** Where an event is on the stage. */
  place(event) {
    return place(event, this.host.canvas, this.host.view.stage);
  }

  at(stage) {
    return spot(this.host.view.toImage(stage), this.host.model.size);
  }

  down(event) {
    if (!this.host.ready()) return;
    const { canvas } = this.host;
    const stage = this.place(event);
    canvas.focus({ preventScroll: true });
    this.cursor = null;
    canvas.setPointerCapture(event.pointerId);
    if (event.pointerType === "touch") {
      this.fingers.set(event.pointerId, stage);
      if (this.fingers.size > 1) return this.pinchBegins();
    }
    const panning = event.button === 1 || event.button === 2 || this.host.tool() === "pan";
    this.press(stage, { panning, slack: event.pointerType === "touch" ? 22 : 9 });
  }

  move(event) {
    const stage = this.place(event);
    if (this.fingers.has(event.pointerId)) {
      this.fingers.set(event.pointerId, stage);
      if (this.pinch) return this.pinchMoves();
    }
    const pieces = event.getCoalescedEvents?.() ?? [];
    for (const each of pieces.length ? pieces : [event]) this.drag(this.place(each));
  }

  up(event) {
    this.fingers.delete(event.pointerId);
    if (this.pinch) {
      if (!this.fingers.size) this.pinch = null;
      return;
    }
    this.release(this.place(event));
  }

  drop(event) {
    this.fingers.delete(event.pointerId);
    this.cancel();
  }

  // Press, drag, release: places are on the stage.

  press(stage, { panning = false, slack = 9 } = {}) {
    const { model, view } = this.host;
    const tool = this.host.tool();
    const at = this.at(stage);
    const reach = slack / view.scale;
    this.act = { from: stage, last: stage, start: at, path: [at], far: 0, kind: panning ? "pan" : tool };
    if (panning) return;
    if (tool === "select") this.grab(stage, at, slack, reach);
    if (tool === "point") this.draft = { ...this.look("point"), point: at };
    this.host.redraw();
  }

  grab(stage, at, slack, reach) {
    const { model, view } = this.host;
    const near = (handle) => {
      const [x, y] = view.toStage(handle.at);
      return Math.hypot(x - stage[0], y - stage[1]);
    };
    const handles = model.selected ? handlesOf(model.selected) : [];
    const [handle] = handles.filter((each) => near(each) <= slack).sort((a, b) => near(a) - near(b));
    if (handle) return Object.assign(this.act, { kind: "pull", handle, was: model.selected });
    const found = under(model.regions, at, reach);
    const again = found.findIndex((each) => each.id === model.selected?.id);
    // What is selected may be moved although a smaller one lies over it; a click goes on to the next.
    this.act.next = again >= 0 ? found[(again + 1) % found.length] : found[0];
    const was = again >= 0 ? found[again] : found[0];
    if (was && again < 0) model.select(was.id);
    Object.assign(this.act, { kind: was ? "shift" : "none", was });
  }

  look(shape) {
    return { ...this.host.model.look(shape), shape, frame: "pixel" };
  }

  drag(stage) {
    const { act } = this;
    if (!act) {
      this.hover = this.at(stage);
      if (this.corners.length) this.host.redraw();
      return;
    }
    const { model, view } = this.host;
    const at = this.at(stage);
    act.far = Math.max(act.far, Math.hypot(stage[0] - act.from[0], stage[1] - act.from[1]));
    if (act.kind === "pan") view.pan(stage[0] - act.last[0], stage[1] - act.last[1]);
    else if (act.kind === "pull") this.draft = act.handle.pull(act.was, at);
    else if (act.kind === "shift" && act.far >= CLICK) {
      this.draft = moved(act.was, ...[0, 1].map((i) => (stage[i] - act.from[i]) / view.scale), model.size);
    } else if (act.kind === "point") this.draft = { ...this.draft, point: at };
    else if (act.kind === "scribble" || FREE.includes(act.kind)) {
      const [x, y] = act.path.at(-1);
      if (x !== at[0] || y !== at[1]) act.path.push(at);
      this.draft = { ...this.look("scribble"), points: act.path };
    } else if (act.kind === "suggest") this.draft = pulled("box", act.start, at, { color: "#ffffff", width: 1 });
    else if (act.kind !== "none" && act.kind !== "select") this.draft = pulled(act.kind, act.start, at, this.look(act.kind));
    act.last = stage;
    this.host.redraw();
  }

  release(stage) {
    const { act } = this;
    if (!act) return;
    this.drag(stage);
    const { model, view } = this.host;
    const draft = this.draft;
    this.act = this.draft = null;
    const click = act.far < CLICK;
    if (act.kind === "pull" && draft) model.replace(draft);
    else if (act.kind === "shift" && draft) model.replace(draft);
    else if (act.kind === "shift" && click) model.select(act.next.id);
    else if (act.kind === "none") model.select(null);
    else if (act.kind === "point") model.add(draft);
    else if (act.kind === "suggest") this.host.suggest(click ? { point: act.start } : { box: draft?.box });
    else if (FREE.includes(act.kind)) this.outlined(act, click);
    else if (act.kind === "pan") { /* done on the way */ }
    else if (click) model.select(under(model.regions, act.start, 9 / view.scale)[0]?.id ?? null);
    else if (act.kind === "scribble") {
      model.add({ ...this.look("scribble"), points: simplified(act.path, 0.4 / view.scale) });
    } else model.add(draft);
    this.host.redraw();
  }

  /** A contour or a mask: one free drag, or corners by clicks until the first is met again. */
  outlined(act, click) {
    if (!click && !this.corners.length) return this.finish(act.kind, simplified(act.path, 0.6 / this.host.view.scale));
    const [first] = this.corners;
    const { view } = this.host;
    const close = first && this.corners.length > 2
      && Math.hypot(first[0] - act.start[0], first[1] - act.start[1]) * view.scale <= 10;
    if (close) return this.close();
    this.corners.push(...(click ? [act.start] : simplified(act.path, 0.6 / view.scale)));
    return this.host.say("Click the corners; the first corner, Enter or a double click closes the outline.");
  }

  close() {
    const corners = this.corners.filter((each, i, all) => !i || each[0] !== all[i - 1][0] || each[1] !== all[i - 1][1]);
    this.corners = [];
    if (corners.length) this.finish(this.host.tool(), corners);
    this.host.redraw();
  }

  async finish(shape, ring) {
    const { model } = this.host;
    if (!FREE.includes(shape)) return;
    if (ring.length < 3) return this.host.say("An outline needs at least three corners.");
    let polygons = [ring.flat()];
    if (crosses(ring)) polygons = await this.host.outline(ring);
    if (polygons) model.add({ ...this.look(shape), polygons });
  }

  cancel() {
    this.act = this.draft = this.pinch = null;
    this.corners = [];
    this.host.redraw();
  }

  // Zoom: wheel with Ctrl (which is also what a touch pad's pinch sends), and two fingers.

  wheel(event) {
    if (!this.host.ready()) return;
    const { view } = this.host;
    if (event.ctrlKey || event.metaKey) view.zoom(view.scale * Math.exp(-event.deltaY / 300), this.place(event));
    else if (event.shiftKey) view.pan(-(event.deltaX || event.deltaY), 0);
    else return; // the page scrolls
    event.preventDefault();
    this.host.redraw();
  }

  pinchBegins() {
    this.act = this.draft = null;
    const [a, b] = [...this.fingers.values()];
    this.pinch = { apart: Math.hypot(a[0] - b[0], a[1] - b[1]), scale: this.host.view.scale, at: middle(a, b) };
    this.host.redraw();
  }

  pinchMoves() {
    const [a, b] = [...this.fingers.values()];
    if (!b) return;
    const { view } = this.host;
    const at = middle(a, b);
    view.pan(at[0] - this.pinch.at[0], at[1] - this.pinch.at[1]);
    view.zoom((this.pinch.scale * Math.hypot(a[0] - b[0], a[1] - b[1])) / Math.max(this.pinch.apart, 1), at);
    this.pinch.at = at;
    this.host.redraw();
  }

  // The keyboard. Returns nothing; a key that is not ours goes on to the page.

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

  /** Arrow keys move the selected region (with Alt: its lower right end), else the keyboard's pointer. */
  arrow([dx, dy], resize) {
    const { model, view } = this.host;
    const region = model.selected;
    if (this.host.tool() === "select" && region) {
      if (!resize) return model.replace(moved(region, dx, dy, model.size));
      const handles = handlesOf(region);
      const handle = handles.length === 8 ? handles[4] : handles.at(-1);
      return model.replace(handle.pull(region, spot([handle.at[0] + dx, handle.at[1] + dy], model.size)));
    }
    const from = this.cursor ?? view.toStage(model.size.map((each) => each / 2));
    const by = Math.max(1, view.scale);
    const to = [from[0] + dx * by, from[1] + dy * by];
    this.cursor = to.map((each, axis) => Math.min(Math.max(each, 0), view.stage[axis] - 1));
    this.drag(this.cursor);
    this.host.redraw();
  }

  /** Space or Enter presses the keyboard's pointer down, and again lets it go. */
  toggle() {
    const { model, view } = this.host;
    this.cursor ??= view.toStage(model.size.map((each) => each / 2));
    if (this.act) this.release(this.cursor);
    else this.press(this.cursor);
  }

  escape() {
    if (this.act || this.corners.length) this.cancel();
    else this.host.model.select(null);
  }
}

const middle = (a, b) => [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2];
