// Requests to the page's own routes. What goes wrong comes back as an Error with the server's own words.

const BASE = new URL("../", import.meta.url);

/** POST a body to page/PATH; gives the JSON of the answer. */
export async function send(path, body, type) {
  let answer;
  try {
    answer = await fetch(new URL(path, BASE), { method: "POST", body, headers: { "content-type": type } });
  } catch {
    throw new Error("The server can't be reached.");
  }
  const told = await answer.json().catch(() => null);
  if (answer.ok && told) return told;
  throw new Error(told?.error?.message ?? `The server answered with ${answer.status}.`);
}
