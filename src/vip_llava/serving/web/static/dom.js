// Helpers to create elements. Strings become text nodes, never markup.

/** Create an element: attributes by name (functions become listeners), children as elements or text. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((each) => each !== null && each !== undefined));
  return element;
}

const ICONS = {
  select: "M5 3l14 8-6 1.5L10 19z",
  pan: "M12 3v18M3 12h18M12 3l-2.5 2.5M12 3l2.5 2.5M12 21l-2.5-2.5M12 21l2.5-2.5M3 12l2.5-2.5M3 12l2.5 2.5M21 12l-2.5-2.5M21 12l-2.5 2.5",
  box: "M4 6h16v12H4z",
  ellipse: "M3 12a9 6 0 1 0 18 0a9 6 0 1 0-18 0",
  triangle: "M12 4l9 16H3z",
  point: "M8 12a4 4 0 1 0 8 0a4 4 0 1 0-8 0",
  scribble: "M3 15c3-10 5-10 6-5s2 6 4 1 3-5 4-2 1 5 4 4",
  arrow: "M4 20L19 5M19 5v9M19 5h-9",
  contour: "M6 5c5-4 12 0 13 5s-3 5-3 8-7 3-10-1S2 9 6 5z",
  mask: "M6 5c5-4 12 0 13 5s-3 5-3 8-7 3-10-1S2 9 6 5z",
  suggest: "M4 20L14 10M17 3v4M15 5h4M20 11v3M18.500 12.500h3M9 4v3M7.500 5.500h3",
  undo: "M9 6L4 11l5 5M4 11h10a5 5 0 0 1 0 10h-3",
  redo: "M15 6l5 5-5 5M20 11H10a5 5 0 0 0 0 10h3",
  delete: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13M10.500 11v6M13.500 11v6",
  out: "M5 12h14",
  in: "M5 12h14M12 5v14",
  fit: "M4 9V4h5M20 9V4h-5M4 15v5h5M20 15v5h-5",
  up: "M7 11v9H4v-9zM7 11l4-8c2 0 2.500 1.500 2 4h5l1.500 1.500L18 18l-1.500 2H7",
  down: "M7 13V4H4v9zM7 13l4 8c2 0 2.500-1.500 2-4h5l1.500-1.500L18 6l-1.500-2H7",
  flag: "M6 21V4M6 4h12l-3 4 3 4H6",
  copy: "M9 9h11v11H9zM5 15V4h11",
};

export function icon(name) {
  const namespace = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(namespace, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  if (["mask", "point"].includes(name)) svg.classList.add("vl-solid");
  const path = document.createElementNS(namespace, "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/** A button with an icon; the label is for screen readers and the tooltip. */
export function button(name, label, onClick, more = {}) {
  return make("button", { type: "button", class: "vl-tool", "aria-label": label, title: label, click: onClick, ...more }, icon(name));
}
