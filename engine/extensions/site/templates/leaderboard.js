"use strict";
const form = document.getElementById("filters"), summary = document.getElementById("status");
const boards = [...document.querySelectorAll("section.board")];
const counted = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;

function apply() {
  const asked = Object.fromEntries(new FormData(form));
  const low = Number(asked.from || 0), high = asked.to ? Number(asked.to) : Infinity;
  let rows = 0, tables = 0;
  for (const board of boards) {
    const heads = [...board.querySelectorAll("thead th")], keyed = heads.filter((head) => "key" in head.dataset);
    const main = keyed.filter((head) => "main" in head.dataset);
    const shown = new Set(asked.question === "*" ? keyed : asked.question
      ? keyed.filter((head) => head.dataset.key === asked.question) : main.length ? main : keyed);
    const fits = (!asked.suite || asked.suite === board.dataset.suite) && (!asked.data || asked.data === board.dataset.data)
      && (shown.size > 0 || !asked.question);
    let here = 0;
    for (const row of board.querySelectorAll("tbody tr")) {
      const own = row.dataset, width = Number(own.width);
      row.hidden = !(fits && (!asked.objective || asked.objective === own.objective)
        && (!asked.family || asked.family === own.family) && width >= low && width <= high
        && row.cells[0].textContent.toLowerCase().includes(asked.name.toLowerCase()));
      here += row.hidden ? 0 : 1;
    }
    heads.forEach((head, at) => {
      const hidden = keyed.includes(head) && !shown.has(head);
      if (head.hidden !== hidden) {
        for (const row of board.querySelectorAll("tr")) row.cells[at].hidden = hidden;
      }
    });
    board.hidden = here === 0;
    rows += here;
    tables += here ? 1 : 0;
  }
  summary.textContent = `${counted(rows, "row")} in ${counted(tables, "table")}`;
}

function sort(board, head, at) {
  const text = head.classList.contains("words"), before = head.getAttribute("aria-sort");
  const up = before === "none" ? text : before === "descending";  // numbers start with the highest
  for (const other of board.querySelectorAll("thead th")) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const number = (row) => Number(row.cells[at].dataset.v ?? -Infinity);
  const compared = (a, b) => text
    ? a.cells[at].textContent.localeCompare(b.cells[at].textContent, undefined, { numeric: true }) : number(a) - number(b) || 0;
  const body = board.querySelector("tbody");
  body.append(...[...body.rows].sort((a, b) => (up ? 1 : -1) * compared(a, b)));
}

for (const board of boards) {
  board.querySelectorAll("thead th:not(.strip)").forEach((head) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(board, head, head.cellIndex));
    head.append(button);
    head.setAttribute("aria-sort", "none");
  });
}
form.addEventListener("input", apply);
form.addEventListener("reset", () => setTimeout(apply));
form.addEventListener("submit", (event) => event.preventDefault());
form.closest("details").hidden = false;
apply();
