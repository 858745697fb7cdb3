// What Gradio's components start: each function puts one of our parts into one of them.

import { Conversation } from "./conversation.js";
import { mount } from "./canvas.js";
import { send } from "./send.js";

/** The head: light or dark. Gradio takes the system's choice; the button turns it over. */
export function head(element) {
  element.querySelector(".vl-theme").addEventListener("click", () => document.body.classList.toggle("dark"));
  document.documentElement.lang ||= "en";
}

/** The canvas. What is on it becomes the component's value. */
export function canvas(element, props, examples) {
  window.vlCanvas = mount(element.querySelector(".vl-place"), {
    send,
    insert,
    examples,
    onchange: (value) => { props.value = value; },
  });
}

/** The conversation, which the server sends as the component's value. */
export function talk(element, props, trigger, watch) {
  const conversation = new Conversation(element.querySelector(".vl-talk"), { trigger, focus: () => field()?.focus() });
  const show = () => conversation.show(props.value);
  watch("value", show);
  show();
}

const field = () => document.querySelector("#vl-question textarea, #vl-question input");

/** Put text into the question, where the cursor is, with blanks around it. */
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
