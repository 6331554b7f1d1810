// Tables with more than two columns tell each cell its heading: on narrow screens a row becomes a card.
document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll(".pst-scrollable-table-container > table")) {
    const headings = [...table.querySelectorAll("thead th")].map((cell) => cell.textContent.trim());
    if (headings.length < 3) continue;
    table.classList.add("cards");
    if (headings.length > 9) table.classList.add("many");
    for (const row of table.querySelectorAll("tbody tr")) {
      [...row.children].forEach((cell, i) => { cell.dataset.heading = headings[i] || ""; });
    }
  }
  // What code prints with more columns than that is set smaller.
  for (const table of document.querySelectorAll(".bd-article div.output.text_html table")) {
    if ((table.querySelector("tbody tr")?.children.length ?? 0) > 9) table.classList.add("many");
  }
});
