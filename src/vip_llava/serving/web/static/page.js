// Entry points for Gradio's components: each function mounts one part of the page.

import { Conversation } from "./conversation.js";
import { mount } from "./canvas.js";
import { send } from "./send.js";

/** The header, with a button that toggles light and dark. */
export function header(element) {
  element.querySelector(".vl-theme").addEventListener("click", () => document.body.classList.toggle("dark"));
  document.documentElement.lang ||= "en";
}

/** The canvas; its image and regions become the component's value. */
export function canvas(element, props, examples) {
  window.vlCanvas = mount(element.querySelector(".vl-place"), {
    send,
    insert,
    examples,
    onchange: (value) => { props.value = value; },
  });
}

/** The conversation; the server sends it as the component's value. */
export function conversation(element, props, trigger, watch) {
  const view = new Conversation(element.querySelector(".vl-conversation"), { trigger });
  const show = () => view.show(props.value);
  watch("value", show);
  show();
}

const field = () => document.querySelector("#vl-question textarea, #vl-question input");

/** Insert text into the question at the cursor, separated by blanks. */
function insert(text) {
  const box = field();
  if (!box) return;
  const [start, end] = [box.selectionStart ?? box.value.length, box.selectionEnd ?? box.value.length];
  const before = box.value.slice(0, start);
  const after = box.value.slice(end);
  const words = `${before && !/\s$/.test(before) ? " " : ""}${text}${after && !/^[\s?.,;:!]/.test(after) ? " " : ""}`;
  box.setRangeText(words, start, end, "end");
  box.dispatchEvent(new Event("input", { bubbles: true }));
  box.focus();
}
