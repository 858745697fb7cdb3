// A question as JSON, curl or Python, to copy or save. The saved JSON contains the image.

import { make } from "./dom.js";

const TOKEN = '"IMAGE"';

/** Open the dialog for an exchange, whose `share` has the texts by format. */
export function share(exchange) {
  const text = make("pre", { tabindex: 0, class: "vl-code" });
  const tabs = Object.keys(exchange.share).map((name) => make(
    "button", { type: "button", role: "tab", class: "vl-tab", click: () => choose(name) }, name,
  ));
  const choose = (name) => {
    text.textContent = exchange.share[name].replace(TOKEN, '"data:image/png;base64,... (in the saved file)"');
    for (const each of tabs) each.setAttribute("aria-selected", String(each.textContent === name));
  };
  const status = make("span", { role: "status", class: "vl-about" });
  const dialog = make(
    "dialog", { class: "vl-share", "aria-label": "Share this question" },
    make("div", { class: "vl-tabs", role: "tablist" }, ...tabs),
    text,
    make(
      "div", { class: "vl-actions" },
      make("button", { type: "button", class: "vl-link", click: () => copy(text.textContent, status) }, "Copy"),
      make("button", { type: "button", class: "vl-link", "data-act": "save", click: () => save(exchange, status) }, "Save request.json"),
      make("button", { type: "button", class: "vl-link", click: () => dialog.close() }, "Close"),
      status,
    ),
  );
  dialog.addEventListener("close", () => dialog.remove());
  choose("JSON");
  document.body.append(dialog);
  dialog.showModal();
}

async function copy(text, status) {
  try {
    await navigator.clipboard.writeText(text);
    status.textContent = "Copied.";
  } catch {
    status.textContent = "The browser does not allow it; select the text instead.";
  }
}

/** Save the complete request with the unmarked image. */
async function save(exchange, status) {
  let content = exchange.share.JSON;
  if (exchange.image) {
    const answer = await fetch(new URL(`../images/${exchange.image}?exact=1`, import.meta.url));
    if (!answer.ok) {
      status.textContent = "The image has expired on the server.";
      return;
    }
    const reader = new FileReader();
    reader.readAsDataURL(await answer.blob());
    await new Promise((resolve) => { reader.onload = resolve; });
    content = content.replace(TOKEN, JSON.stringify(reader.result));
  }
  const url = URL.createObjectURL(new Blob([content], { type: "application/json" }));
  const link = make("a", { href: url, download: "request.json" });
  link.click();
  URL.revokeObjectURL(url);
  status.textContent = "Saved.";
}
