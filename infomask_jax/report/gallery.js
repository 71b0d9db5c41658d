// The gallery of films. Everything that is named comes from films/SPLIT.json and is only ever text.

const $ = (id) => document.getElementById(id);
const FILTERS = { a: "all", h: "hit", m: "miss", d: "found", p: "missed positive", f: "false alarm", r: "rejected" };
FILTERS.u = "unknown";
const SIGNS = { 1: "positive", 0: "negative", "-1": "unknown" };
const MEANS = {
  all: "all films",
  hit: "positive, found probable, and the peak of the map lies in a true box",
  miss: "positive, found probable, but the peak of the map lies outside of all true boxes",
  found: "positive, found probable; it has no box to judge the map by",
  "missed positive": "positive, but its probability is below .5",
  "false alarm": "negative, but its probability is .5 or more",
  rejected: "negative, and its probability is below .5",
  unknown: "its label is unknown",
};
const BITS = "bits in the box: the sum of the bits of all cells, each weighted by the share of its area inside the box";
const short = (x, places = 3) => x.toFixed(places).replace(/^0\./, ".");
// The split; its films that pass the filters; which of them is shown; the filter; of that film, map and truth.
let split, list = [], at = 0, wanted = "all", prepared, truth;

function make(tag, text = "", name = "") {
  const node = document.createElement(tag);
  node.textContent = text, node.className = name;
  return node;
}

function fill(select, names) {
  select.replaceChildren(...names.map((name, i) => Object.assign(make("option", name), { value: i })));
  select.parentNode.hidden = names.length < 2;
}

const finding = () => Number($("finding").value);
const method = () => split.methods[$("method").value];
const outcome = (film) => split.outcomes[film.outcomes[$("method").value][finding()]];
const mapOf = (film, number) => {
  const maps = film.maps[number];
  return decode(maps[maps.length > 1 ? finding() : 0], split.methods[number].half);
};

function open(block) {
  split = JSON.parse(block.textContent);
  fill($("finding"), split.findings);
  fill($("method"), split.methods.map((one) => one.name));
  const n = split.films.length, thinned = n < split.total;
  const kept = thinned ? `${n} of ${split.total} films, evenly spaced over outcomes` : `${n} films`;
  const judged = "Hit or miss: whether the peak of the chosen map lies in a true box.";
  $("kept").textContent = `${split.dataset} / ${split.split}: ${kept}. ${judged}`;
  wanted = "all";
  list = [split.films.find((film) => film.truth[0]) || split.films[0]], at = 0;
  startCut();
}

function startCut() {
  // a method and a finding have a threshold of their own
  const { value, from } = method().cuts[finding()];
  $("cut").value = value;
  $("scored").textContent = `scored at ${short(value, 2)} (${from})`;
  filter();
}

function filter() {
  const shown = list[at], k = finding(), low = Number($("low").value), high = Number($("high").value);
  const likely = split.films.filter(({ p }) => p[k] >= low && p[k] <= high);
  list = likely.filter((film) => wanted === "all" || outcome(film) === wanted);
  $("filters").replaceChildren(...Object.entries(FILTERS).flatMap(([key, name]) => {
    const count = name === "all" ? likely.length : likely.filter((film) => outcome(film) === name).length;
    if (!count && name !== wanted && (name === "found" || name === "unknown")) return [];
    const button = make("button", `${name} ${count}`);
    button.type = "button", button.dataset.name = name, button.title = `${MEANS[name]} (key ${key})`;
    button.setAttribute("aria-pressed", name === wanted);
    button.onclick = () => choose(name);
    return [button];
  }));
  $("thumbs").replaceChildren(...list.map((_, i) => {
    const button = make("button", "", "thumb");
    button.type = "button", button.value = i;
    button.onclick = () => show(i, true);
    near.observe(button);
    return button;
  }));
  $("thumbs").scrollTop = 0;
  show(Math.max(list.indexOf(shown), 0));
}

function choose(name) {
  const focused = $("filters").contains(document.activeElement);
  wanted = name;
  filter();
  if (focused) $("filters").querySelector("[aria-pressed=true]").focus();
}

const source = (film) => `data:image/jpeg;base64,${film.jpeg}`;
const near = new IntersectionObserver((entries) => entries.forEach(({ isIntersecting, target }) => {
  if (!isIntersecting || !target.isConnected) return; // built when it comes near the window of thumbnails, not sooner
  near.unobserve(target);
  const film = list[target.value], kind = outcome(film), image = make("img");
  image.src = source(film), image.alt = "", target.title = film.id;
  target.classList.add(kind.replace(" ", "-"));
  target.append(image, make("span", kind), make("small", `p ${short(film.p[finding()], 2)}`));
}), { root: $("thumbs"), rootMargin: "300px" });

function show(i, bring = false) {
  at = i;
  const film = list[at], empty = !film;
  $("viewer").hidden = empty, $("none").hidden = !empty;
  if (empty) return;
  for (const old of $("thumbs").querySelectorAll("[aria-current]")) old.removeAttribute("aria-current");
  const thumb = $("thumbs").children[at], box = $("thumbs");
  thumb.setAttribute("aria-current", "true");
  if (thumb.offsetTop < box.scrollTop || thumb.offsetTop + thumb.offsetHeight > box.scrollTop + box.clientHeight)
    box.scrollTop = thumb.offsetTop - box.clientHeight / 2;
  const [height, width] = film.size, k = finding(), side = split.frame;
  $("stage").style.aspectRatio = `${width} / ${height}`;
  $("stage").style.width = `min(100%, ${((62 * width) / height).toFixed(2)}vh)`;
  $("film").src = source(film);
  $("name").textContent = film.id;
  $("outcome").textContent = outcome(film);
  $("place").textContent = `${at + 1} of ${list.length}`;
  $("about").textContent = `${SIGNS[film.labels[k]]}, p = ${short(film.p[k])}, ${width} x ${height}`;
  prepared = prepareMap(mapOf(film, $("method").value), method().grid, side);
  truth = film.truth[k] && decodeRuns(film.truth[k]);
  const heat = $("heat"), pixels = new ImageData(side, side);
  prepared.forEach((s, j) => {
    pixels.data.set(split.colors[Math.round(s * 255)], 4 * j);
    pixels.data[4 * j + 3] = Math.round(255 * (0.15 + 0.5 * s));
  });
  heat.width = heat.height = side;
  heat.getContext("2d").putImageData(pixels, 0, 0);
  draw();
  if (bring) $("stage").scrollIntoView({ block: "nearest" });
}

function draw() {
  // what depends on the threshold: boxes, IoU, bits
  const film = list[at], cut = Number($("cut").value), number = split.methods.findIndex((one) => one.share);
  const bits = number >= 0 && mapOf(film, number);
  const boxes = film.boxes.filter((box) => box[0] === finding()).map((box) => [box.slice(1), "true"]);
  boxes.push(...regionBoxes(prepared, split.frame, cut).map((box) => [box, "predicted"]));
  $("cutAt").textContent = short(cut, 2);
  $("iou").value = truth ? overlap(prepared, truth, cut) : "";
  $("iou").textContent = truth ? short(Number($("iou").value)) : "-";
  $("iou").title = truth ? "" : "no truth of this finding here";
  const rects = boxes.map(([[ymin, xmin, ymax, xmax], kind]) => {
    const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    const place = { class: kind, x: xmin, y: ymin, width: xmax - xmin, height: ymax - ymin };
    Object.entries(place).forEach(([name, value]) => rect.setAttribute(name, value));
    return rect;
  });
  $("boxes").replaceChildren(...rects);
  $("rows").replaceChildren(...boxes.map(([box, kind], i) => {
    const row = make("tr"), { grid, share } = split.methods[number] || {};
    const told = bits ? `${short(massInside(bits, grid, box) * share, 1)} bits` : "-";
    row.append(make("th", `${kind} box`, kind), make("td", told));
    row.title = bits ? BITS : "";
    row.onmouseenter = () => rects[i].classList.add("hot");
    row.onmouseleave = () => rects[i].classList.remove("hot");
    return row;
  }));
  $("bits").hidden = !bits || !boxes.length;
}

function drawCurtain() {
  const part = Number($("curtain").value);
  $("heat").style.clipPath = `inset(0 ${100 - part}% 0 0)`;
  $("edge").style.left = `${part}%`;
}

function drag(event) {
  if (event.type === "pointerdown") $("stage").setPointerCapture(event.pointerId);
  else if (!event.buttons) return;
  const { left, width } = $("stage").getBoundingClientRect();
  $("curtain").value = (100 * (event.clientX - left)) / width;
  drawCurtain();
}

function step(by) {
  if (list.length) show((at + by + list.length) % list.length);
}

function nudge(by) {
  $("cut").value = Number($("cut").value) + by;
  if (list.length) draw();
}

function key(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || $("keys").open) return;
  const own = event.target.matches?.("input, select"); // which have their own use of keys
  const moves = { ArrowLeft: () => step(-1), ArrowRight: () => step(1) };
  moves["-"] = () => nudge(-0.01), moves["+"] = () => nudge(0.01);
  if (event.key === "?") $("keys").showModal();
  else if (event.key === "Escape") event.target.blur?.();
  else if (own) return;
  else if (moves[event.key]) moves[event.key]();
  else if (event.key === "t") ($("curtain").value = Number($("curtain").value) ? 0 : 100), drawCurtain();
  else if (FILTERS[event.key]) choose(FILTERS[event.key]);
  else if (split.methods[event.key - 1]) ($("method").value = event.key - 1), startCut();
  else return;
  event.preventDefault();
}

function start() {
  const blocks = [...document.querySelectorAll("script[id^=films-]")];
  if (!blocks.length) return;
  $("gallery").hidden = false;
  fill($("split"), blocks.map((block) => block.dataset.name));
  $("split").onchange = () => open(blocks[$("split").value]);
  $("finding").onchange = $("method").onchange = startCut;
  $("low").oninput = $("high").oninput = filter;
  $("cut").oninput = draw;
  $("curtain").oninput = drawCurtain;
  $("stage").onpointerdown = $("stage").onpointermove = drag;
  $("back").onclick = () => step(-1);
  $("next").onclick = () => step(1);
  $("scored").onclick = startCut;
  $("help").onclick = () => $("keys").showModal();
  document.addEventListener("keydown", key);
  drawCurtain();
  open(blocks[0]);
}
start();
