// A question as JSON, curl or Python, to copy or to save. The saved JSON has the image in it.

import { make } from "./dom.js";

const TOKEN = '"IMAGE"';

/** Open the dialog for a turn: its `share` has the texts by name. */
export function share(turn) {
  const text = make("pre", { tabindex: 0, class: "vl-code" });
  const tabs = Object.keys(turn.share).map((name) => make(
    "button", { type: "button", role: "tab", class: "vl-tab", click: () => choose(name) }, name,
  ));
  const choose = (name) => {
    text.textContent = turn.share[name].replace(TOKEN, '"data:image/png;base64,... (in the saved file)"');
    for (const each of tabs) each.setAttribute("aria-selected", String(each.textContent === name));
  };
  const told = make("span", { role: "status", class: "vl-about" });
  const dialog = make(
    "dialog", { class: "vl-share", "aria-label": "Share this question" },
    make("div", { class: "vl-tabs", role: "tablist" }, ...tabs),
    text,
    make(
      "div", { class: "vl-actions" },
      make("button", { type: "button", class: "vl-link", click: () => copy(text.textContent, told) }, "Copy"),
      make("button", { type: "button", class: "vl-link", "data-act": "save", click: () => save(turn, told) }, "Save request.json"),
      make("button", { type: "button", class: "vl-link", click: () => dialog.close() }, "Close"),
      told,
    ),
  );
  dialog.addEventListener("close", () => dialog.remove());
  choose("JSON");
  document.body.append(dialog);
  dialog.showModal();
}

async function copy(text, told) {
  try {
    await navigator.clipboard.writeText(text);
    told.textContent = "Copied.";
  } catch {
    told.textContent = "The browser did not allow it; select the text instead.";
  }
}

/** The whole request as a file. Its image has the pixels that the model was given, without marks. */
async function save(turn, told) {
  let content = turn.share.JSON;
  if (turn.image) {
    const answer = await fetch(new URL(`../images/${turn.image}?exact=1`, import.meta.url));
    if (!answer.ok) {
      told.textContent = "The image is not on the server any more.";
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
  told.textContent = "Saved.";
}
