// Values in words: pure functions, of the API's types.

// natWords names a NAT in the name people use, and says its behaviour in the words
// of RFC 4787. Agents ask the rendezvous at one address, which cannot tell full
// cones from address-restricted ones.
export function natWords(nat) {
  if (nat.blocked) return { gloss: "UDP blocked", behaviour: nat.blocked };
  const words = [];
  if (nat.present && nat.mapping) words.push(`${nat.mapping} mapping`);
  if (nat.filtering) words.push(`${nat.filtering} filtering`);
  if (nat.present && nat.allocation === "sequential") words.push(`sequential ports in steps of ${nat.step ?? 0}`);
  else if (nat.present && nat.allocation === "preserving") words.push("preserves ports");
  else if (nat.present && nat.allocation) words.push(`${nat.allocation} ports`);
  if (nat.poisoned === "yes") words.push("remembers unasked packets (poisoned)");
  if (nat.hairpin === "yes") words.push("hairpins");
  if (nat.lifetimeSeconds > 0) words.push(`mappings live ${nat.lifetimeSeconds} s or longer`);
  if (nat.present && nat.hops > 0) words.push(`TTL ${nat.hops} leaves it`);
  return { gloss: natGloss(nat), behaviour: words.join(", ") };
}

function natGloss(nat) {
  const open = nat.filtering === "endpoint-independent";
  if (nat.present) {
    if (!nat.mapping) return "NAT of unknown mapping";
    if (nat.mapping !== "endpoint-independent") return "symmetric";
    if (open) return "full or address-restricted cone";
    if (nat.filtering === "address-dependent") return "address-restricted cone";
    if (nat.filtering === "address-and-port-dependent") return "port-restricted cone";
    return "cone of unknown filtering";
  }
  if (!nat.mapping && !nat.filtering) return "not known yet";
  if (!nat.filtering || open) return "no NAT";
  return "no NAT, stateful firewall";
}

const kinds = {
  host: "host", srflx: "server-reflexive", prflx: "peer-reflexive",
  mapped: "port mapping", predicted: "predicted", public: "public address",
};

// kindWords is a candidate's or path's kind in the words of RFC 8445 section 5.1.1.
export const kindWords = (kind) => kinds[kind] ?? kind ?? "";

const strategies = {
  ice: "by ICE checks", openers: "by openers", predict: "by predicted ports",
  probe: "by a search for ports", none: "nothing is tried", public: "at a public address",
};

// strategyWords says how a pair is brought together.
export const strategyWords = (strategy) => strategies[strategy] ?? strategy ?? "";

// expectWords is a verdict: what is expected, and how.
export function expectWords(verdict) {
  const how = verdict.expect === "direct" || verdict.strategy === "none" ? strategyWords(verdict.strategy) : "";
  return { expect: verdict.expect ?? "", how };
}

const steps = {
  start: "start", openers: "openers sent", ports: "ports opened", search: "search begins",
  check: "check sent", heard: "peer heard", hit: "port found", nominated: "nominated",
  loaded: "charon loaded", ike: "IKE SA", child: "CHILD SAs", bytes: "bytes through", failed: "failed",
};

// stepWords says what a side did or saw at a step of an attempt.
export const stepWords = (step) => steps[step.kind] ?? step.kind;

// endpoint writes an address as strongSwan does, addr[port]; "" if there is none.
export function endpoint(text) {
  if (!text) return "";
  const cut = text.lastIndexOf(":");
  const addr = text.slice(0, cut).replace(/^\[|\]$/g, "").replace(/^::ffff:(?=\d+\.)/, "");
  return `${addr}[${text.slice(cut + 1)}]`;
}

// bytes is an amount in the decimal units that people are billed by.
export function bytes(n) {
  if (n >= 10_000_000) return `${Math.floor(n / 1_000_000)} MB`;
  if (n >= 10_000) return `${Math.floor(n / 1000)} kB`;
  return `${n} B`;
}

// known is a time of the API in milliseconds, null for never.
export function known(time) {
  return !time || time.startsWith("0001-") ? null : Date.parse(time);
}

// utc is a time as people read it.
export function utc(time) {
  const ms = known(time);
  return ms === null ? "never" : new Date(ms).toISOString().slice(0, 19).replace("T", " ") + " UTC";
}

export const clock = (time) => utc(time).slice(11, 19);

// ago allows for a time that is a little ahead: the clocks may have been read in
// the other order.
export function ago(now, time) {
  const ms = known(time);
  if (ms === null) return "never";
  return now - ms < 1000 ? "just now" : `${span(now - ms)} ago`;
}

// span is a duration, given in milliseconds, in its largest unit, rounded down, at
// least one second.
export function span(ms) {
  const second = 1000, minute = 60 * second, hour = 60 * minute, day = 24 * hour;
  if (ms >= 2 * day) return `${Math.floor(ms / day)} days`;
  if (ms >= 2 * hour) return `${Math.floor(ms / hour)} h`;
  if (ms >= 2 * minute) return `${Math.floor(ms / minute)} min`;
  return `${Math.max(1, Math.floor(ms / second))} s`;
}

// millis is a short duration, given in milliseconds.
export function millis(ms) {
  return ms < 10000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
}

// percent never says 100 % of what is not all, nor 0 % of what is something.
export function percent(part, whole) {
  if (whole === 0) return "–";
  if (part === whole) return "100 %";
  if (part === 0) return "0 %";
  return `${Math.min(99.9, Math.max(0.1, (part / whole) * 100)).toFixed(1)} %`;
}

// number groups thousands; the browser's language shall not change the page.
export const number = (n) => n.toLocaleString("en-GB");

// peers are the two nodes of a pair's ID.
export const peers = (id) => id.split("|");
