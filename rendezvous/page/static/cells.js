// The matrix as data: the state of every pair, kept in line with the events, and
// what of it a filter leaves. Pure, but for its own fields.
import { peers } from "./words.js";

const none = ".".charCodeAt(0);

const words = { d: "direct", r: "relayed", x: "down", R: "relayed, being punched", X: "down, being punched", ".": "no pair" };

// cellWords says what a cell means.
export const cellWords = (cell) => words[cell] ?? cell;

// matching says which cells a filter is for.
export const filters = {
  "": () => true,
  "not-direct": (cell) => "rxRX".includes(cell),
  down: (cell) => cell === "x" || cell === "X",
  relayed: (cell) => cell === "r" || cell === "R",
  punching: (cell) => cell === "R" || cell === "X",
  direct: (cell) => cell === "d",
};

export class Cells {
  constructor(matrix) {
    this.nodes = matrix.nodes;
    this.online = [...matrix.online].map((c) => c === "1");
    this.index = new Map(matrix.nodes.map((name, i) => [name, i]));
    const n = this.nodes.length;
    this.cells = new Uint8Array(n * n).fill(none);
    matrix.rows.forEach((row, i) => {
      for (let j = 0; j < row.length; j++) this.put(i, j, row.charCodeAt(j));
    });
  }

  put(i, j, code) {
    const n = this.nodes.length;
    this.cells[i * n + j] = this.cells[j * n + i] = code;
  }

  at(i, j) {
    return String.fromCharCode(this.cells[i * this.nodes.length + j]);
  }

  // apply takes an event in. It returns false when it is about what the matrix does
  // not have, so that the matrix has to be fetched anew.
  apply(e) {
    if (e.kind === "community") return false;
    if (e.kind === "node") {
      const i = this.index.get(e.node);
      if (i === undefined) return false;
      if (e.state === "online" || e.state === "offline") this.online[i] = e.state === "online";
      return true;
    }
    if (e.kind !== "pair" || !e.cell) return true;
    const [i, j] = peers(e.pair).map((name) => this.index.get(name));
    if (i === undefined || j === undefined) return false;
    this.put(i, j, e.cell.charCodeAt(0));
    return true;
  }

  // view is what a search and a filter leave: the nodes of its rows and columns. Of
  // the words searched for, the first is for rows, the second for columns; with a
  // filter, nodes without such a cell are left out.
  view(search, filter) {
    const [down, across] = search.toLowerCase().split(/\s+/).filter(Boolean);
    const all = this.nodes.map((_, i) => i);
    const named = (word) => (word ? all.filter((i) => this.nodes[i].toLowerCase().includes(word)) : all);
    let rows = named(down), columns = named(across);
    if (filter !== "") {
      const wanted = filters[filter] ?? filters[""];
      rows = rows.filter((i) => columns.some((j) => wanted(this.at(i, j))));
      columns = columns.filter((j) => rows.some((i) => wanted(this.at(i, j))));
    }
    return { rows, columns };
  }

  // count counts the pairs that a view shows, each once.
  count({ rows, columns }, filter) {
    const wanted = filters[filter] ?? filters[""];
    const inRows = new Set(rows), inColumns = new Set(columns);
    let pairs = 0;
    for (const i of rows) {
      for (const j of columns) {
        const twice = inRows.has(j) && inColumns.has(i) && j > i;
        const cell = this.at(i, j);
        if (!twice && cell !== "." && wanted(cell)) pairs++;
      }
    }
    return pairs;
  }
}
