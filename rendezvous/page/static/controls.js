// Filters over a list: their values stand in the location's hash, so that a view
// can be linked to, and survive everything that is drawn below them.
import { h } from "./dom.js";

// search makes a field that narrows what is shown.
export function search(query, label, name, changed, placeholder) {
  const input = h("input", { type: "search", id: `filter-${name}`, value: query.get(name) ?? "", placeholder, autocomplete: "off", spellcheck: "false" });
  input.addEventListener("input", () => set(query, name, input.value, changed));
  return { value: () => input.value.trim().toLowerCase(), input, element: h("label", {}, h("span", {}, label), input) };
}

// choice makes a list of [value, words] to choose from.
export function choice(query, label, name, options, changed) {
  const select = h("select", { id: `filter-${name}` }, options.map(([value, words]) => h("option", { value, selected: value === (query.get(name) ?? "") }, words)));
  select.addEventListener("change", () => set(query, name, select.value, changed));
  return { value: () => select.value, input: select, element: h("label", {}, h("span", {}, label), select) };
}

function set(query, name, value, changed) {
  if (value) query.set(name, value);
  else query.delete(name);
  keep(query);
  changed();
}

// keep writes the query into the location without opening the view anew.
export function keep(query) {
  const path = location.hash.split("?")[0];
  history.replaceState(null, "", query.size > 0 ? `${path}?${query}` : path);
}
