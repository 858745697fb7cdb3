// Requests to the page's own routes. Errors carry the server's message.

const BASE = new URL("../", import.meta.url);

/** POST a body to page/PATH; returns the JSON of the response. */
export async function send(path, body, type) {
  let answer;
  try {
    answer = await fetch(new URL(path, BASE), { method: "POST", body, headers: { "content-type": type } });
  } catch {
    throw new Error("The server can't be reached.");
  }
  const content = await answer.json().catch(() => null);
  if (answer.ok && content) return content;
  throw new Error(content?.error?.message ?? `The server answered with ${answer.status}.`);
}
