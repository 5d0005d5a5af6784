for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], original = [...body.rows];
  const key = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.key === undefined ? cell.textContent : Number(cell.dataset.key);
  };
  table.querySelectorAll("thead button").forEach((button, column) => {
    const head = button.closest("th");
    button.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      table.querySelectorAll("thead th").forEach((other) => other.removeAttribute("aria-sort"));
      // Largest numbers first, names from A; a third click gives the order of the model back.
      const numbers = typeof key(original[0], column) === "number";
      const first = numbers ? "descending" : "ascending", second = numbers ? "ascending" : "descending";
      const order = before === null ? first : before === first ? second : null;
      const rows = [...original];
      if (order !== null) {
        head.setAttribute("aria-sort", order);
        const sign = order === "ascending" ? 1 : -1;
        rows.sort((a, b) => {
          const x = key(a, column), y = key(b, column);
          return sign * (numbers ? x - y : x.localeCompare(y, undefined, { numeric: true }));
        });
      }
      body.append(...rows);
    });
  });
}
