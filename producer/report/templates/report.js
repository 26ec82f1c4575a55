// Finding and sorting in the table of all jobs. Without this script the table is the same, only unsorted by others.
(() => {
  "use strict";
  document.documentElement.classList.add("js");
  const table = document.getElementById("table");
  if (!table) return;
  const body = table.tBodies[0];
  const heads = Array.from(table.tHead.rows[0].cells);
  const find = document.getElementById("find");
  const status = document.getElementById("status");
  const found = document.getElementById("found");
  const number = (value) => value.toLocaleString("en-US");
  const rows = Array.from(body.rows, (row) => ({ row, text: null }));
  const collator = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });

  // Digests and paths are cut short on the screen; their titles hold them whole.
  const textOf = (entry) =>
    (entry.text ??= [entry.row.textContent, ...Array.from(entry.row.querySelectorAll("[title]"), (e) => e.title)].join(" ").toLowerCase());

  const filter = () => {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const entry of rows) {
      const fits = (!status.value || entry.row.dataset.status === status.value) && words.every((word) => textOf(entry).includes(word));
      entry.row.hidden = !fits;
      shown += fits;
    }
    const all = `${number(rows.length)} ${table.dataset.noun}${rows.length === 1 ? "" : "s"}${table.dataset.more ? " in this table" : ""}`;
    found.value = shown === rows.length ? all : `${number(shown)} of ${all}`;
  };

  const keyOf = (row, column) => {
    const cell = row.cells[column];
    const exact = cell.querySelector("data");
    if (exact) return Number(exact.value);
    return column === 0 ? Number(row.id.slice(1)) : cell.textContent;
  };

  const sort = (column) => {
    const down = heads[column].getAttribute("aria-sort") === "ascending";
    const keyed = rows.map(({ row }) => ({ row, key: keyOf(row, column) }));
    keyed.sort((a, b) => (typeof a.key === "number" ? a.key - b.key : collator.compare(a.key, b.key)));
    if (down) keyed.reverse();
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[column].setAttribute("aria-sort", down ? "descending" : "ascending");
    body.append(...keyed.map(({ row }) => row));
  };

  // A link to a job must reach it even if the filter hides it.
  const reveal = () => {
    const target = /^#[pd]\d+$/.test(location.hash) && document.getElementById(location.hash.slice(1));
    if (!target || !target.hidden) return;
    find.value = status.value = "";
    filter();
    target.scrollIntoView();
  };

  let waiting;
  find.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(filter, 120);
  });
  status.addEventListener("change", filter);
  find.form.addEventListener("submit", (event) => event.preventDefault());
  find.form.hidden = false;
  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    button.disabled = false;
    button.addEventListener("click", () => sort(column));
  });
  addEventListener("hashchange", reveal);
  filter();
})();
