// The stream of events (server-sent events), read with fetch and not with
// EventSource: that one gives up after an answer like 503, and does not notice a
// connection that has gone silent.
import { login } from "./api.js";

// silence is how long the stream may say nothing, in milliseconds: the rendezvous
// sends a comment at least every 15 s.
const silence = 40000;
// Waits between two tries to connect, in milliseconds.
const firstWait = 500;
const longestWait = 10000;

// shown waits until somebody can see the page. A hidden one, or one that was left
// for another, holds no stream: browsers have six connections to a rendezvous
// without HTTP/2, for all their tabs.
async function shown() {
  while (document.hidden) {
    await new Promise((done) => document.addEventListener("visibilitychange", done, { once: true }));
  }
}

// follow reads the stream for as long as the page is seen, from the event after
// `last` on. It calls opened() when it is connected, event(e) with each event and
// cut(why) when it is not any more.
export async function follow(last, { opened, event, cut }) {
  let wait = firstWait;
  for (;;) {
    await shown();
    try {
      await read(last, () => { wait = firstWait; opened(); }, (e) => { last = e.id; event(e); });
      cut("the rendezvous has ended the connection");
    } catch (err) {
      cut(err.message);
    }
    await new Promise((done) => setTimeout(done, wait * (0.5 + Math.random() / 2)));
    wait = Math.min(wait * 2, longestWait);
  }
}

async function read(last, opened, event) {
  const given = new AbortController();
  let timer = setTimeout(() => given.abort(), silence);
  const hidden = () => { if (document.hidden) given.abort(); };
  document.addEventListener("visibilitychange", hidden);
  try {
    const response = await fetch(`api/v1/events/stream?after=${last}`, { signal: given.signal }).catch(() => {
      throw new Error("the rendezvous cannot be reached");
    });
    if (response.status === 401) await login();
    if (!response.ok) throw new Error(`the rendezvous answered ${response.status}`);
    opened();
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read().catch(() => { throw new Error("the connection was cut"); });
      if (done) return;
      clearTimeout(timer);
      timer = setTimeout(() => given.abort(), silence);
      const lines = (rest + value).split(/\r?\n/);
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) event(JSON.parse(line.slice(5)));
      }
    }
  } finally {
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", hidden);
  }
}
