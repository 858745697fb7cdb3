// The drawing tools, the style of the next mark, and a chip for each mark.

import { PALETTE, defaults, rgb } from "./geometry.js";
import { button, make } from "./dom.js";

export const TOOLS = [
  ["select", "Select, move and resize", "v"],
  ["pan", "Move the image", "h"],
  ["box", "Box", "b"],
  ["ellipse", "Ellipse", "e"],
  ["triangle", "Triangle", "t"],
  ["point", "Point", "p"],
  ["scribble", "Scribble, freehand", "s"],
  ["arrow", "Arrow", "a"],
  ["contour", "Outline: drag freely, or click corners", "c"],
  ["mask", "Filled area: drag freely, or click corners", "m"],
  ["suggest", "Suggest an area: click an object, or draw a box around it", "g"],
];

/** The bars above the stage, and the `zoom` bar below it. `host`: {model, tool(), setTool(name), zoomBy(factor), fit()}. */
export class Toolbar {
  constructor(host) {
    this.host = host;
    const { model } = host;
    this.tools = new Map(TOOLS.map(([name, label, key]) => [
      name,
      button(name, `${label} (${key.toUpperCase()})`, () => host.setTool(name), { "data-tool": name }),
    ]));
    this.undo = button("undo", "Undo (Ctrl+Z)", () => model.undo());
    this.redo = button("redo", "Redo (Ctrl+Shift+Z)", () => model.redo());
    this.remove = button("delete", "Delete the selected mark (Delete)", () => model.remove(model.current.selected));
    this.percent = make("button", { type: "button", class: "vl-percent", title: "Show at 100 %", click: () => host.zoomTo(1) });
    const group = (label, ...parts) => make("div", { class: "vl-group", role: "group", "aria-label": label }, ...parts);
    this.zoom = group(
      "Zoom", button("out", "Zoom out (-)", () => host.zoomBy(1 / 1.25)), this.percent,
      button("in", "Zoom in (+)", () => host.zoomBy(1.25)), button("fit", "Show the whole image (0)", () => host.fit()),
    );
    this.element = make(
      "div", { class: "vl-bars" },
      make(
        "div", { class: "vl-bar", role: "toolbar", "aria-label": "Drawing tools" },
        group("Tools", ...this.tools.values()), group("Changes", this.undo, this.redo, this.remove),
      ),
      make("div", { class: "vl-bar" }, group("Colour", ...this.colors()), group("Look", ...this.sliders())),
    );
  }

  colors() {
    const { model } = this.host;
    this.swatches = Object.entries(PALETTE).map(([name, value]) => make("button", {
      type: "button", class: "vl-swatch", style: `--ink: ${value}`, "aria-label": name, title: name,
      "data-color": name, click: () => model.setStyle("color", name),
    }));
    this.custom = make("input", {
      type: "color", class: "vl-custom", value: "#ff8000", "aria-label": "Another colour (it has no name in the question)",
      title: "Another colour (it has no name in the question)",
      change: (event) => model.setStyle("color", event.target.value),
    });
    return [...this.swatches, this.custom];
  }

  sliders() {
    const { model } = this.host;
    const slider = (name, label, low, high) => make("input", {
      type: "range", min: low, max: high, step: 1, "aria-label": label, "data-look": name,
      change: (event) => model.setStyle(name, Number(event.target.value)),
    });
    this.width = slider("width", "Line width in pixels of the image", 1, 40);
    this.alpha = slider("alpha", "Opacity", 16, 255);
    return [make("label", {}, "Width", this.width), make("label", {}, "Opacity", this.alpha)];
  }

  /** Show the current state. */
  update(scale) {
    const { model } = this.host;
    const tool = this.host.tool();
    for (const [name, each] of this.tools) each.setAttribute("aria-pressed", String(name === tool));
    this.undo.disabled = !model.undoStack.length;
    this.redo.disabled = !model.redoStack.length;
    this.remove.disabled = !model.selected;
    this.percent.textContent = `${Math.round(scale * 100)} %`;
    this.percent.setAttribute("aria-label", `Zoom ${Math.round(scale * 100)} percent; show at 100`);
    const shape = model.selected?.shape ?? tool;
    const style = model.selected ?? model.styleFor(shape);
    const color = model.selected || model.style.color ? style.color : null;
    for (const each of this.swatches) each.setAttribute("aria-pressed", String(each.dataset.color === color));
    this.custom.classList.toggle("vl-chosen", Boolean(color && !PALETTE[color]));
    this.width.max = Math.max(40, 4 * defaults(model.size).width);
    this.width.value = style.width ?? Math.round((style.radius ?? 3) / 3);
    this.width.disabled = shape === "mask";
    this.alpha.value = style.alpha;
  }
}

/** A chip for each mark; a click inserts `<region:ID>` into the question. */
export class Chips {
  constructor(host) {
    this.host = host;
    this.element = make("ul", { class: "vl-chips", "aria-label": "Marks on the image" });
  }

  update() {
    const { model, insert } = this.host;
    const focused = document.activeElement?.dataset?.chip;
    this.element.replaceChildren(...model.regions.map((region) => make(
      "li", { class: "vl-chip", "data-selected": region.id === model.current.selected },
      make("button", {
        type: "button", class: "vl-insert", style: `--ink: ${rgb(region.color)}`, "data-chip": region.id,
        "aria-label": `Put region ${region.id}, ${region.shape}, into the question`,
        title: `Put <region:${region.id}> into the question`,
        click: () => { model.select(region.id); insert(`<region:${region.id}>`); },
      }, make("span", { class: "vl-dot" }), `${region.id} ${region.shape}`),
      make("button", {
        type: "button", class: "vl-remove", "aria-label": `Delete region ${region.id}`, title: "Delete",
        click: () => model.remove(region.id),
      }, "×"),
    )));
    if (focused) this.element.querySelector(`[data-chip="${CSS.escape(focused)}"]`)?.focus();
  }
}
