// The canvas's data: regions, selection, the style of the next region, undo and redo.
// It does not know the screen or events; it calls `onchange` after each change.

import { PALETTE, defaults, isValid } from "./geometry.js";

const MAX_UNDO = 200;

export class Model {
  constructor(onchange) {
    this.onchange = onchange;
    this.clear([1, 1]);
  }

  /** Reset for another image. */
  clear(size) {
    this.size = size;
    this.current = { regions: [], selected: null, next: 1 };
    this.undoStack = [];
    this.redoStack = [];
    this.style = {}; // chosen for the next region: color, width, alpha
  }

  get regions() { return this.current.regions; }

  get selected() {
    return this.current.regions.find((each) => each.id === this.current.selected) ?? null;
  }

  /** Apply a change that can be undone. */
  commit(change) {
    this.undoStack = [...this.undoStack, this.current].slice(-MAX_UNDO);
    this.redoStack = [];
    this.current = { ...this.current, ...change };
    this.onchange();
  }

  undo() {
    if (!this.undoStack.length) return;
    this.redoStack = [this.current, ...this.redoStack];
    this.current = this.undoStack.at(-1);
    this.undoStack = this.undoStack.slice(0, -1);
    this.onchange();
  }

  redo() {
    if (!this.redoStack.length) return;
    this.undoStack = [...this.undoStack, this.current];
    [this.current, ...this.redoStack] = this.redoStack;
    this.onchange();
  }

  select(id) {
    this.current = { ...this.current, selected: id };
    this.onchange();
  }

  /** The first unused colour; colours repeat once all are used. */
  nextColor() {
    const names = Object.keys(PALETTE);
    const used = this.regions.map((each) => each.color);
    return names.find((name) => !used.includes(name)) ?? names[this.regions.length % names.length];
  }

  /** The style of a new region: the chosen values, else the server's defaults. */
  styleFor(shape) {
    const standard = defaults(this.size);
    const style = { color: this.style.color ?? this.nextColor() };
    style.alpha = this.style.alpha ?? (shape === "mask" ? 128 : 255);
    const width = this.style.width ?? (shape === "contour" ? standard.contour : standard.width);
    if (shape === "point") style.radius = this.style.width ? 3 * this.style.width : standard.radius;
    else if (shape !== "mask") style.width = width;
    return style;
  }

  /** Add a region with the next id and select it. An id is never reused on an image. */
  add(region) {
    if (!region || !isValid(region)) return null;
    const id = String(this.current.next);
    const { regions, next } = this.current;
    this.commit({ regions: [...regions, { id, ...region }], selected: id, next: next + 1 });
    return id;
  }

  /** Replace the region with the same id. */
  replace(region) {
    if (!isValid(region)) return;
    this.commit({ regions: this.regions.map((each) => (each.id === region.id ? region : each)) });
  }

  remove(id) {
    this.commit({ regions: this.regions.filter((each) => each.id !== id), selected: null });
  }

  removeAll() {
    if (this.regions.length) this.commit({ regions: [], selected: null });
  }

  /** Set a style of the selected region and of the next ones. */
  setStyle(name, value) {
    this.style = { ...this.style, [name]: value };
    const region = this.selected;
    if (!region) return this.onchange();
    if (name === "width" && region.shape === "mask") return this.onchange();
    if (name === "width" && region.point) return this.replace({ ...region, radius: 3 * value });
    return this.replace({ ...region, [name]: value });
  }
}
