// Requests to the API, and the rendezvous' clock.

// patience is how long an answer may take, in milliseconds, before the reader is
// told that the rendezvous cannot be reached.
const patience = 10000;

// ahead is how far the rendezvous' clock is ahead of this one, in milliseconds:
// ages are of its times.
let ahead = 0;

export const now = () => Date.now() + ahead;

// login leaves for the login form, which comes back to this view.
export function login() {
  location.replace("login" + location.hash);
  return new Promise(() => {}); // the page is being left: nothing may follow
}

export async function get(path, query) {
  const asked = query ? `${path}?${new URLSearchParams(query)}` : path;
  const answer = await request("GET", asked);
  if (answer.at) ahead = Date.parse(answer.at) - Date.now();
  return answer;
}

export const post = (path) => request("POST", path);

async function request(method, path) {
  let response;
  try {
    response = await fetch(`api/v1/${path}`, { method, signal: AbortSignal.timeout(patience) });
  } catch {
    throw new Error("the rendezvous cannot be reached");
  }
  if (response.status === 401) return login();
  if (response.ok) return response.status === 204 ? {} : response.json();
  const text = (await response.text()).trim();
  let message = text;
  try {
    message = JSON.parse(text).error ?? text;
  } catch { /* words as they are */ }
  throw new Error(message || `the rendezvous answered ${response.status}`); // in its own words
}

// segment makes a name part of a path.
export const segment = encodeURIComponent;
