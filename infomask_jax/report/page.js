// Tables fold: the columns of class "more" come with a button.

for (const table of document.querySelectorAll("table.fold")) {
  const button = document.createElement("button");
  const turn = () => (button.textContent = table.classList.toggle("folded") ? "more columns" : "fewer columns");
  button.type = "button", button.className = "fold", button.onclick = turn;
  table.before(button);
  turn();
}
